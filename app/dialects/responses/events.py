"""An answer as output items of the Responses API, and the events that report their growth.

One item is open at a time. It ends when an event of another kind begins, or with the answer. A
stream sends all events. A whole answer is the response in the last event.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from app.chat_format.events import Event, TextDelta, ThinkingDelta, ToolCallDelta, ToolCallEnd
from engine.messages import TokenLogprobs

StreamEvent = dict[str, Any]  # has a `type`, but no sequence number yet
Item = dict[str, Any]

_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
}


def item_id(type: str | None) -> str:
    return f"{_PREFIXES.get(type or 'message', 'item')}_{uuid.uuid4().hex}"


class OutputItems:
    """The items of an answer so far. An item is in its final form once it has ended."""

    def __init__(
        self,
        logprobs: Callable[[Sequence[TokenLogprobs]], list[Any]],
        *,
        summary: bool,
        namespaces: Mapping[str, tuple[str | None, str]],
    ) -> None:
        """If `summary`, thoughts are also sent as their own summary, which many clients read.

        `namespaces` has the namespace and name of the functions by the names that the model uses.
        """
        self.items: list[Item] = []
        self._logprobs = logprobs
        self._summary = summary
        self._namespaces = namespaces

    def add(self, event: Event, logprobs: Sequence[TokenLogprobs]) -> list[StreamEvent]:
        match event:
            case TextDelta(text=text):
                begun = self._begin("message", role="assistant", content=[])
                return begun + self._add_text(text, self._logprobs(logprobs))
            case ThinkingDelta(text=text):
                begun = self._begin("reasoning", summary=[], content=[])
                return begun + self._add_thought(text)
            case ToolCallDelta(name=str() as name, arguments=arguments):
                namespace, plain = self._namespaces.get(name, (None, name))
                call = {"call_id": f"call_{uuid.uuid4().hex[:24]}", "name": plain, "arguments": ""}
                if namespace is not None:
                    call["namespace"] = namespace
                return self.end() + self._open("function_call", call) + self._argue(arguments)
            case ToolCallDelta(arguments=arguments):
                return self._argue(arguments)
            case ToolCallEnd():  # the item ends where the next one begins, or with the answer
                return []

    def end(self, status: str = "completed") -> list[StreamEvent]:
        """End the open item, if there is one. Returns its last events."""
        if self._open_type is None:
            return []
        item = self.items[-1]
        item["status"] = status
        return [*self._last_events(item), self._item_event("output_item.done", item=item)]

    @property
    def _open_type(self) -> str | None:
        """Returns the type of the open item, or None if no item is open."""
        if not self.items or self.items[-1]["status"] != "in_progress":
            return None
        item_type: str = self.items[-1]["type"]
        return item_type

    def _begin(self, type: str, **fields: Any) -> list[StreamEvent]:
        """Open an item of this type, unless one is open already. Returns the events."""
        return [] if self._open_type == type else self.end() + self._open(type, fields)

    def _open(self, type: str, fields: dict[str, Any]) -> list[StreamEvent]:
        item = {"id": item_id(type), "type": type, "status": "in_progress", **fields}
        self.items.append(item)
        added = self._item_event("output_item.added", item=deepcopy(item))
        match type:
            case "message":
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                return [added, self._add_part("content", part)]
            case "reasoning":
                parts = [self._add_part("content", {"type": "reasoning_text", "text": ""})]
                if self._summary:
                    parts.append(self._add_part("summary", {"type": "summary_text", "text": ""}))
                return [added, *parts]
        return [added]

    def _add_part(self, field: str, part: dict[str, Any]) -> StreamEvent:
        self.items[-1][field].append(part)
        return self._part_event(field, "part.added", part=deepcopy(part))

    def _add_text(self, text: str, logprobs: list[Any]) -> list[StreamEvent]:
        part = self.items[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        return [self._text_event("output_text.delta", delta=text, logprobs=logprobs)]

    def _add_thought(self, text: str) -> list[StreamEvent]:
        item = self.items[-1]
        events = []
        for part in [*item["content"], *item["summary"]]:
            part["text"] += text
            events.append(self._thought_event(part, "delta", delta=text))
        return events

    def _argue(self, arguments: str) -> list[StreamEvent]:
        self.items[-1]["arguments"] += arguments
        if not arguments:
            return []
        return [self._item_event("function_call_arguments.delta", delta=arguments)]

    def _last_events(self, item: Item) -> list[StreamEvent]:
        """Returns the events that end the item's parts."""
        match item["type"]:
            case "message":
                (part,) = item["content"]
                text, logprobs = part["text"], part["logprobs"]
                return [
                    self._text_event("output_text.done", text=text, logprobs=logprobs),
                    self._part_event("content", "part.done", part=part),
                ]
            case "reasoning":
                return [
                    event
                    for field in ("content", "summary")
                    for part in item[field]
                    for event in (
                        self._thought_event(part, "done", text=part["text"]),
                        self._part_event(field, "part.done", part=part),
                    )
                ]
        return [self._item_event("function_call_arguments.done", arguments=item["arguments"])]

    def _item_event(self, type: str, **fields: Any) -> StreamEvent:
        """Returns an event of the open item, with its id unless the event has the whole item."""
        reference = {} if "item" in fields else {"item_id": self.items[-1]["id"]}
        index = len(self.items) - 1
        return {"type": f"response.{type}", **reference, "output_index": index, **fields}

    def _text_event(self, type: str, **fields: Any) -> StreamEvent:
        return self._item_event(type, content_index=0, **fields)

    def _part_event(self, field: str, type: str, **fields: Any) -> StreamEvent:
        if field == "content":
            return self._item_event(f"content_{type}", content_index=0, **fields)
        return self._item_event(f"reasoning_summary_{type}", summary_index=0, **fields)

    def _thought_event(self, part: dict[str, Any], type: str, **fields: Any) -> StreamEvent:
        if part["type"] == "reasoning_text":
            return self._item_event(f"reasoning_text.{type}", content_index=0, **fields)
        return self._item_event(f"reasoning_summary_text.{type}", summary_index=0, **fields)
