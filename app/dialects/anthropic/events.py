"""An answer as Anthropic's JSON: a whole message, or the events of a stream.

A tool call is sent when it is complete, so that its input is always valid JSON. A call that
`max_tokens` cuts off is left out of the answer.
"""

import json
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Response

from app.answer.figures import Figures, diffusion
from app.answer.generation import Delta, Finished, answer_events, whole_answers
from app.answer.request import AnswerRequest
from app.chat_format.events import Event, TextDelta, ThinkingDelta, ToolCallDelta, ToolCallEnd
from app.errors import ApiError, error_body
from app.logs import request_id
from app.services import Services
from app.sse import NamedEvent, event_stream
from engine.messages import GenerateRequest

# Clients do not send back a thought that has no signature. This one signs nothing.
SIGNATURE = "easel"


@dataclass(frozen=True)
class MessagesAnswer:
    """Makes one answer, whole or as a stream. Both begin with the fields of `head`."""

    services: Services
    request: AnswerRequest
    prepared: Sequence[GenerateRequest]
    shows_thoughts: bool
    head: dict[str, Any]

    async def whole(self) -> Response:
        (choice,) = await whole_answers(self.services, self.request, self.prepared)
        blocks = [_whole_block(event, self.shows_thoughts) for event in choice.events]
        message = {
            **self.head,
            "content": [block for block in blocks if block is not None],
            **self._stop(choice.end),
            "usage": _usage(choice.end.figures),
            "diffusion": diffusion([choice.end.figures]),
        }
        return Response(msgspec.json.encode(message), media_type="application/json")

    def stream(self) -> Response:
        """Returns a stream that is the same answer as `whole`."""
        idle_s = self.services.settings.stream_idle_s
        return event_stream(self._events(), idle_s, lambda: _event("ping"))

    async def _events(self) -> AsyncGenerator[NamedEvent, None]:
        """Yields the events. The first ones come at once, while the answer waits for its turn.

        How much of the prompt is cached is known with the first block. `message_delta` has it, and
        its figures replace those of `message_start`.
        """
        yield self._beginning()
        yield _event("ping")
        blocks = _StreamedBlocks(self.shows_thoughts)
        try:
            answer = answer_events(self.services, self.request, self.prepared)
            async with aclosing(answer) as events:
                async for event in events:
                    match event:
                        case Delta(event=added):
                            for each in blocks.add(added):
                                yield each
                        case Finished(figures=figures):
                            for each in blocks.close():
                                yield each
                            yield _event(
                                "message_delta",
                                delta=self._stop(event),
                                usage=_usage(figures),
                                diffusion=diffusion([figures]),
                            )
            yield _event("message_stop")
        except ApiError as error:
            body = error_body(error, "anthropic", request_id.get())
            yield NamedEvent("error", json.dumps(body))

    def _beginning(self) -> NamedEvent:
        (prompt,) = self.request.prompts
        message = {
            **self.head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Figures(len(prompt.tokens))),
        }
        return _event("message_start", message=message)

    def _stop(self, end: Finished) -> dict[str, str | None]:
        match end.reason:
            case "tool_calls":
                reason = "tool_use"
            case "stop":
                reason = "end_turn" if end.stop_string is None else "stop_sequence"
            case "length":
                context_ended = self.prepared[0].max_tokens != self.request.max_tokens
                reason = "model_context_window_exceeded" if context_ended else "max_tokens"
        return {"stop_reason": reason, "stop_sequence": end.stop_string}


@dataclass
class _StreamedBlocks:
    """An answer's content blocks as the events of a stream."""

    shows_thoughts: bool
    index: int = -1
    open: type[Event] | None = None

    def add(self, event: Event) -> Iterator[NamedEvent]:
        match event:
            case TextDelta(text=text):
                yield from self._ensure(TextDelta, {"type": "text", "text": ""})
                yield self._delta("text_delta", text=text)
            case ThinkingDelta(text=text):
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                yield from self._ensure(ThinkingDelta, empty)
                if self.shows_thoughts:
                    yield self._delta("thinking_delta", thinking=text)
            case ToolCallDelta():  # waits until the call has ended
                yield from self.close()
            case ToolCallEnd(name=name, arguments=arguments, complete=True):
                yield from self._ensure(ToolCallEnd, {**_new_call(name), "input": {}})
                yield self._delta("input_json_delta", partial_json=arguments)
                yield from self.close()

    def close(self) -> Iterator[NamedEvent]:
        """Yields the end of the block that is open, if one is."""
        if self.open is ThinkingDelta:
            yield self._delta("signature_delta", signature=SIGNATURE)
        if self.open is not None:
            yield _event("content_block_stop", index=self.index)
        self.open = None

    def _ensure(self, kind: type[Event], empty: dict[str, Any]) -> Iterator[NamedEvent]:
        """Begin a block of this kind, unless a block of this kind is already open."""
        if self.open is not kind:
            yield from self.close()
            self.index, self.open = self.index + 1, kind
            yield _event("content_block_start", index=self.index, content_block=empty)

    def _delta(self, kind: str, **added: str) -> NamedEvent:
        return _event("content_block_delta", index=self.index, delta={"type": kind, **added})


def _event(name: str, **fields: Any) -> NamedEvent:
    return NamedEvent(name, json.dumps({"type": name, **fields}, ensure_ascii=False))


def _whole_block(event: Event, shows_thoughts: bool) -> dict[str, Any] | None:
    """Returns the content block for a merged event, or None if the event makes no block."""
    match event:
        case TextDelta(text=text):
            return {"type": "text", "text": text}
        case ThinkingDelta(text=text):
            thought = text if shows_thoughts else ""
            return {"type": "thinking", "thinking": thought, "signature": SIGNATURE}
        case ToolCallEnd(name=name, arguments=arguments, complete=True):
            # The arguments are not parsed and written again, because that would change large
            # numbers and lone surrogates.
            return {**_new_call(name), "input": msgspec.Raw(arguments.encode())}
    return None


def _new_call(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": name}


def _usage(figures: Figures) -> dict[str, Any]:
    """Returns Anthropic's usage object. Its `input_tokens` do not include cached tokens.

    There is always at least one, even if all are cached: clients such as Claude Code keep the
    number of `message_start` if a later one is 0.
    """
    cached_tokens = min(figures.cached_tokens, figures.prompt_tokens - 1)
    return {
        "input_tokens": figures.prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": figures.completion_tokens,
        "output_tokens_details": {"thinking_tokens": figures.thinking_tokens},
    }
