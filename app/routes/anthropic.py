"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's Messages API.

What Claude Code and Anthropic's SDKs speak. A tool call is given out when it is complete, so what
a client gets of one always parses; one that `max_tokens` cuts is no part of the answer.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from app.errors import ApiError, BadRequest, ContextLengthExceeded, error_body
from app.gemma_format import Event, TextDelta, ThinkingDelta, ToolCallDelta
from app.logs import request_id
from app.prompt import Message, Prompt, image_part
from app.routes.body import parsed
from app.routes.figures import Figures, diffusion
from app.routes.generation import (
    Admission,
    AnswerRequest,
    ChatFormat,
    Delta,
    Finished,
    Services,
    answer_events,
    check_model,
    prepare,
    random_seed,
    services,
    whole_answers,
)
from app.routes.waiting import unless_gone
from app.schemas.anthropic import (
    AnyBlock,
    CountTokensRequest,
    ImageBlock,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from app.schemas.tools import strict_validator
from app.sse import NamedEvent, event_stream
from engine.messages import GenerateRequest, Ready

# Clients drop a thought without a signature instead of sending it back. It signs nothing.
SIGNATURE = "easel"
# Claude Code's first line of the system prompt. It is meant for Anthropic's servers and another one
# in each request, so that no prompt would have a prefix in common with the one before.
_ATTRIBUTION = "x-anthropic-billing-header:"

router = APIRouter()


@dataclass(frozen=True)
class Answer:
    """One answer to be made, in either of its forms; `head` is what both begin with."""

    found: Services
    request: AnswerRequest
    prepared: Sequence[GenerateRequest]
    shows_thoughts: bool
    head: dict[str, Any]


@router.post("/v1/messages")
async def messages(http: Request, admit: Admission) -> Response:
    body = await parsed(http, MessagesRequest)
    found = services(http)
    check_model(body.model, found.settings.model)
    limits = admit()
    request = await asyncio.to_thread(_request, found, body)
    head = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": found.settings.model,
    }
    answer = Answer(found, request, _prepared(request, limits), body.shows_thoughts, head)
    if body.stream:
        return event_stream(_stream(answer))
    return await unless_gone(http, _whole(answer))


@router.post("/v1/messages/count_tokens")
async def count_tokens(http: Request) -> dict[str, int]:
    body = await parsed(http, CountTokensRequest)
    found = services(http)
    check_model(body.model, found.settings.model)
    prompt = await asyncio.to_thread(_prompt, found, body)
    return {"input_tokens": len(prompt.tokens)}


def _request(found: Services, body: MessagesRequest) -> AnswerRequest:
    choice = body.tool_choice
    return AnswerRequest(
        [_prompt(found, body)],
        body.sampling(random_seed()),
        body.max_tokens,
        "messages",
        timeout_s=body.timeout,
        stops=tuple(body.stop_sequences or ()),
        format=ChatFormat(
            {
                tool.name: strict_validator(
                    tool.strict, tool.input_schema, param=f"tools.{index}.input_schema"
                )
                for index, tool in enumerate(body.offered)
            },
            parallel_calls=choice is None or not choice.disable_parallel_tool_use,
            whole_calls=True,
        ),
    )


def _prepared(request: AnswerRequest, limits: Ready) -> list[GenerateRequest]:
    try:
        return prepare(request, limits)
    except ContextLengthExceeded as error:
        # Claude Code knows by these words that it has to compact the conversation.
        tokens, most = len(request.prompts[0].tokens), limits.context_length - 1
        told = f"prompt is too long: {tokens} tokens > {most} maximum. {error.message}"
        raise ContextLengthExceeded(told, param=error.param) from error


def _prompt(found: Services, body: CountTokensRequest) -> Prompt:
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.input_schema,
            },
        }
        for tool in body.offered
    ]
    return found.prompts.chat(template_messages(body), tools, thinking=body.thinks)


def template_messages(body: CountTokensRequest) -> list[Message]:
    """In the template's terms: neighbours of a role as one turn, without what is empty.

    Raises BadRequest for a result of a call that was not made just before it.
    """
    system = _system(body.system)
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    calls: dict[str, int] = {}  # the last turn's, with their places
    spoken = [message for message in body.messages if message.blocks]
    for role, several in groupby(spoken, key=attrgetter("role")):
        blocks = [block for message in several for block in message.blocks]
        match role:
            case "assistant":
                turns.append(_assistant_turn(blocks))
                ids = [block.id for block in blocks if isinstance(block, ToolUseBlock)]
                calls = {id: place for place, id in reversed([*enumerate(ids)])}
            case "user":
                turns += _user_turns(blocks, calls)
            case "system":
                turns.append({"role": "system", "content": _content(blocks)})
    return turns


def _system(system: str | Sequence[TextBlock] | None) -> str:
    texts = [system or ""] if isinstance(system, str | None) else [each.text for each in system]
    meant = [t.partition("\n")[2] if t.startswith(_ATTRIBUTION) else t for t in texts]
    return "\n".join(text for text in meant if text.strip())


def _assistant_turn(blocks: Sequence[AnyBlock]) -> Message:
    turn: Message = {"role": "assistant", "content": _content(blocks)}
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = [block for block in blocks if isinstance(block, ToolUseBlock)]
    if any(thoughts):
        turn["reasoning_content"] = "\n".join(thoughts)
    if calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.input},
            }
            for call in calls
        ]
    return turn


def _user_turns(blocks: Sequence[AnyBlock], calls: Mapping[str, int]) -> list[Message]:
    """Results in their calls' order, as the model tells them apart by it, then what is said."""
    results = [block for block in blocks if isinstance(block, ToolResultBlock)]
    for result in results:
        if result.tool_use_id not in calls:
            raise BadRequest(
                f"messages: a tool_result names the tool_use_id {result.tool_use_id!r}, which is "
                "no tool_use of the assistant's message before it.",
                param="messages",
            )
    turns = [
        {"role": "tool", "tool_call_id": result.tool_use_id, "content": _result(result)}
        for result in sorted(results, key=lambda result: calls[result.tool_use_id])
    ]
    said = [block for block in blocks if not isinstance(block, ToolResultBlock)]
    return [*turns, {"role": "user", "content": _content(said)}] if said else turns


def _result(result: ToolResultBlock) -> str | list[dict[str, Any]]:
    shown: list[AnyBlock] = [*result.blocks]
    if result.is_error:
        shown = [TextBlock(type="text", text="The tool failed:"), *shown]
    return _content(shown)


def _content(blocks: Iterable[AnyBlock]) -> str | list[dict[str, Any]]:
    """Texts and images. Texts side by side are lines of one: a template would glue them."""
    parts: list[dict[str, Any]] = []
    shown = [block for block in blocks if isinstance(block, TextBlock | ImageBlock)]
    for _, several in groupby(shown, key=type):
        lines: list[str] = []
        for block in several:
            match block:
                case TextBlock(text=text):
                    lines.append(text)
                case ImageBlock():
                    parts.append(image_part(block.url, "messages"))
        if lines:
            parts.append({"type": "text", "text": "\n".join(lines)})
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts


async def _whole(answer: Answer) -> Response:
    (choice,) = await whole_answers(answer.found, answer.request, answer.prepared)
    blocks = [_block(event, answer.shows_thoughts) for event in choice.events]
    message = {
        **answer.head,
        "content": [block for block in blocks if block is not None],
        **_stop(answer, choice.end),
        "usage": _usage(choice.end.figures),
        "diffusion": diffusion([choice.end.figures]),
    }
    return Response(msgspec.json.encode(message), media_type="application/json")


async def _stream(answer: Answer) -> AsyncGenerator[NamedEvent, None]:
    """Begins with the first block, as only then it is known what of the prompt was cached.

    Clients take a 0 at the end for no news and keep the number they were told at the beginning.
    """
    blocks = _StreamedBlocks(answer.shows_thoughts)
    begun = False
    try:
        async with aclosing(answer_events(answer.found, answer.request, answer.prepared)) as events:
            async for event in events:
                if not begun:
                    yield _beginning(answer, event.figures)
                    yield _event("ping")
                    begun = True
                match event:
                    case Delta(event=added):
                        for each in blocks.add(added):
                            yield each
                    case Finished(figures=figures):
                        for each in blocks.close():
                            yield each
                        yield _event(
                            "message_delta",
                            delta=_stop(answer, event),
                            usage=_usage(figures),
                            diffusion=diffusion([figures]),
                        )
        yield _event("message_stop")
    except ApiError as error:
        body = error_body(error, "anthropic", request_id.get())
        yield NamedEvent("error", json.dumps(body))


def _beginning(answer: Answer, figures: Figures) -> NamedEvent:
    message = {
        **answer.head,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(figures),
    }
    return _event("message_start", message=message)


@dataclass
class _StreamedBlocks:
    """An answer's blocks as the events of a stream. A call waits here until it has ended."""

    shows_thoughts: bool
    index: int = -1
    open: type[Event] | None = None
    call: ToolCallDelta | None = None

    def add(self, event: Event) -> Iterator[NamedEvent]:
        match event:
            case ToolCallDelta(name=None, arguments=more):
                assert self.call is not None, "a call begins with its name"
                self.call = replace(self.call, arguments=self.call.arguments + more)
            case ToolCallDelta():
                yield from self.close()
                self.call = event
            case TextDelta(text=text):
                yield from self._ensure(TextDelta, {"type": "text", "text": ""})
                yield self._delta("text_delta", text=text)
            case ThinkingDelta(text=text):
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                yield from self._ensure(ThinkingDelta, empty)
                if self.shows_thoughts:
                    yield self._delta("thinking_delta", thinking=text)

    def close(self) -> Iterator[NamedEvent]:
        """The end of the block that is open, or a whole call."""
        call, self.call = self.call, None
        block = None if call is None else _block(call, self.shows_thoughts)
        if call is not None and block is not None:
            yield from self._ensure(ToolCallDelta, {**block, "input": {}})
            yield self._delta("input_json_delta", partial_json=call.arguments)
        if self.open is ThinkingDelta:
            yield self._delta("signature_delta", signature=SIGNATURE)
        if self.open is not None:
            yield _event("content_block_stop", index=self.index)
        self.open = None

    def _ensure(self, kind: type[Event], empty: dict[str, Any]) -> Iterator[NamedEvent]:
        """A block of this kind is open after this."""
        if self.open is not kind:
            yield from self.close()
            self.index, self.open = self.index + 1, kind
            yield _event("content_block_start", index=self.index, content_block=empty)

    def _delta(self, kind: str, **added: str) -> NamedEvent:
        return _event("content_block_delta", index=self.index, delta={"type": kind, **added})


def _event(name: str, **fields: Any) -> NamedEvent:
    return NamedEvent(name, json.dumps({"type": name, **fields}, ensure_ascii=False))


def _block(event: Event, shows_thoughts: bool) -> dict[str, Any] | None:
    """A whole part of an answer; None of a call that was cut off."""
    match event:
        case TextDelta(text=text):
            return {"type": "text", "text": text}
        case ThinkingDelta(text=text):
            thought = text if shows_thoughts else ""
            return {"type": "thinking", "thinking": thought, "signature": SIGNATURE}
        case ToolCallDelta(name=name, arguments=arguments):
            try:
                json.loads(arguments, parse_int=str, parse_float=str)
            except (ValueError, RecursionError):
                return None
            return {
                "type": "tool_use",
                "id": f"toolu_{uuid.uuid4().hex[:24]}",
                "name": name,
                # As it came: numbers of any size, and halves of characters, survive only so.
                "input": msgspec.Raw(arguments.encode()),
            }


def _stop(answer: Answer, end: Finished) -> dict[str, str | None]:
    match end.reason:
        case "tool_calls":
            reason = "tool_use"
        case "stop":
            reason = "end_turn" if end.stop_string is None else "stop_sequence"
        case "length":
            full = answer.prepared[0].max_tokens != answer.request.max_tokens
            reason = "model_context_window_exceeded" if full else "max_tokens"
    return {"stop_reason": reason, "stop_sequence": end.stop_string}


def _usage(figures: Figures) -> dict[str, Any]:
    """Tokens found in the cache are no input tokens here; what is written to it costs nothing."""
    return {
        "input_tokens": figures.prompt_tokens - figures.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": figures.cached_tokens,
        "output_tokens": figures.completion_tokens,
        "output_tokens_details": {"thinking_tokens": figures.thinking_tokens},
    }
