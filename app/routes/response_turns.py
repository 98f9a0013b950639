"""A Responses conversation in the chat template's terms."""

from collections.abc import Sequence
from typing import Any

from app.errors import BadRequest
from app.prompt import Message, image_part
from app.routes.chat import call_arguments
from app.schemas.response_items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputImage,
    InputItem,
    MessageItem,
    ReasoningItem,
)


def template_messages(earlier: Sequence[InputItem], said: Sequence[InputItem]) -> list[Message]:
    """In the template's terms: what the assistant thinks, says and calls in a row is one turn.

    Thoughts that lead to neither words nor calls are part of no turn and are left out. Raises
    BadRequest for a result of a call that nobody made.
    """
    turns: list[Message] = []
    called: set[str] = set()
    for place, item in enumerate([*earlier, *said], start=-len(earlier)):
        field = f"input.{place}" if place >= 0 else "previous_response_id"
        match item:
            case FunctionCallOutputItem():
                if item.call_id not in called:
                    raise BadRequest(
                        f"{field}.call_id: no call before it has the id {item.call_id!r}.",
                        param=f"{field}.call_id",
                    )
                result = {"role": "tool", "tool_call_id": item.call_id, "content": item.text}
                turns.append(result if item.name is None else {**result, "name": item.name})
            case MessageItem(role="assistant"):
                turn = _assistant_turn(turns, item)
                turn["content"] += item.text
            case MessageItem():
                turns.append({"role": item.role, "content": _content(item, field)})
            case ReasoningItem():
                turn = _assistant_turn(turns, item)
                turn["reasoning_content"] = turn.get("reasoning_content", "") + item.text
            case FunctionCallItem():
                called.add(item.call_id)
                function = {"name": item.name, "arguments": call_arguments(item.arguments)}
                call = {"id": item.call_id, "type": "function", "function": function}
                _assistant_turn(turns, item).setdefault("tool_calls", []).append(call)
    return [
        turn
        for turn in turns
        if turn["role"] != "assistant" or turn["content"] or "tool_calls" in turn
    ]


def _content(item: MessageItem, field: str) -> str | list[dict[str, Any]]:
    if isinstance(item.content, str):
        return item.content
    return [
        image_part(part.image_url, f"{field}.content.{index}.image_url")
        if isinstance(part, InputImage)
        else {"type": "text", "text": part.text}
        for index, part in enumerate(item.content)
    ]


def _assistant_turn(turns: list[Message], item: InputItem) -> Message:
    """The turn that the item is part of: the last one, unless that has said all it had to say.

    A turn that calls goes on until the first result, which must follow the calls.
    """
    last = turns[-1] if turns else {"role": None}
    goes_on = isinstance(item, FunctionCallItem) or "tool_calls" in last or not last.get("content")
    if last["role"] != "assistant" or not goes_on:
        turns.append({"role": "assistant", "content": ""})
    return turns[-1]
