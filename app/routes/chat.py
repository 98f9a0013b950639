"""`POST /v1/chat/completions`."""

import asyncio
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from app.errors import BadRequest
from app.gemma_format import Event, TextDelta, ThinkingDelta, ToolCallDelta
from app.prompt import Message, image_part
from app.routes.body import parsed
from app.routes.generation import (
    Admission,
    AnswerRequest,
    ChatFormat,
    Choice,
    Delta,
    Finished,
    Services,
    check_model,
    prepare,
    random_seed,
    services,
)
from app.routes.openai_answer import OpenAIAnswer
from app.routes.waiting import unless_gone
from app.schemas.chat import ChatCompletionRequest, ChatMessage, ImagePart
from app.schemas.common import bounded_json
from app.schemas.tools import strict_validator
from app.sse import event_stream
from app.vocabulary import Vocabulary
from engine.messages import TokenLogprobs

router = APIRouter()


@router.post("/chat/completions", include_in_schema=False)
@router.post("/v1/chat/completions")
async def chat_completions(http: Request, admit: Admission) -> Response:
    body = await parsed(http, ChatCompletionRequest)
    found = services(http)
    check_model(body.model, found.settings.model)
    limits = admit(body.n or 1)
    request = await asyncio.to_thread(_request, found, body)
    prepared = prepare(request, limits)
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": found.settings.model,
    }
    answer = _ChatAnswer(found, request, prepared, head, body.include_usage)
    if body.stream:
        return event_stream(answer.chunks())
    return await unless_gone(http, answer.whole())


def _request(found: Services, body: ChatCompletionRequest) -> AnswerRequest:
    tools = [tool.model_dump(exclude_none=True) for tool in body.offered]
    prompt = found.prompts.chat(template_messages(body.messages), tools, thinking=body.thinking)
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return AnswerRequest(
        [prompt],
        msgspec.structs.replace(
            body.sampling(random_seed()),
            top_logprobs=top_logprobs,
        ),
        body.token_limit,
        "messages",
        timeout_s=body.timeout,
        n=body.n or 1,
        stops=body.stops,
        format=ChatFormat(
            {
                tool.function.name: strict_validator(
                    tool.function.strict,
                    tool.function.parameters,
                    param=f"tools.{index}.function.parameters",
                )
                for index, tool in enumerate(body.offered)
            },
            parallel_calls=body.parallel_tool_calls is not False,
        ),
    )


def template_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """In the template's terms. Raises BadRequest for a result of a call that nobody made."""
    called: set[str] = set()
    turns = []
    for index, message in enumerate(messages):
        called.update(call.id for call in message.tool_calls or ())
        if message.tool_call_id is not None and message.tool_call_id not in called:
            field = f"messages.{index}.tool_call_id"
            raise BadRequest(
                f"{field}: no call before it has the id {message.tool_call_id!r}.", param=field
            )
        turn = message.model_dump(exclude_none=True, exclude={"tool_calls", "content"})
        turn["content"] = _content(message, f"messages.{index}.content")
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": call_arguments(call.function.arguments),
                    },
                }
                for call in message.tool_calls
            ]
        turns.append(turn)
    return turns


def _content(message: ChatMessage, field: str) -> str | list[dict[str, Any]]:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return [
        image_part(part.image_url.url, f"{field}.{index}.image_url.url")
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for index, part in enumerate(message.content)
    ]


def call_arguments(text: str) -> Any:
    """A mapping, as the template has it; what is none, or no template can render for its size, is
    shown to the model as it came.
    """
    try:
        arguments = bounded_json(json.loads(text or "{}"))
    except (ValueError, RecursionError):
        return text
    return arguments if isinstance(arguments, dict) else text


def _thinking(text: str) -> dict[str, str]:
    """Under both names that clients look for."""
    return {"reasoning_content": text, "reasoning": text}


def _call(call: ToolCallDelta) -> dict[str, Any]:
    """A call, or what a delta adds to one."""
    if call.name is None:
        return {"function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _delta(event: Event) -> dict[str, Any]:
    match event:
        case TextDelta(text=text):
            return {"content": text}
        case ThinkingDelta(text=text):
            return _thinking(text)
        case ToolCallDelta(index=index):
            return {"tool_calls": [{"index": index, **_call(event)}]}


def token_logprobs(
    vocabulary: Vocabulary, logprobs: Sequence[TokenLogprobs]
) -> list[dict[str, Any]]:
    """OpenAI's figures of each token and of those that might have stood in its place."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = vocabulary.token_bytes(token)
        text = raw.decode(errors="replace")
        return {"token": text, "logprob": logprob, "bytes": list(raw)}

    return [
        {**entry(each.token, each.logprob), "top_logprobs": [entry(*pair) for pair in each.top]}
        for each in logprobs
    ]


class _ChatAnswer(OpenAIAnswer):
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _whole(self, choice: Choice) -> dict[str, Any]:
        calls = choice.calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not choice.text else choice.text,
            "refusal": None,
        }
        if choice.thinking:
            message |= _thinking(choice.thinking)
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        asked = self.request.sampling.top_logprobs is not None
        return {
            "index": choice.end.choice,
            "message": message,
            "finish_reason": choice.end.reason,
            "logprobs": self._logprobs(choice.logprobs) if asked else None,
        }

    def _openings(self) -> Iterator[dict[str, Any]]:
        for choice in range(self.request.choices):
            yield self._chunk(choice, {"role": "assistant", "content": ""})

    def _added(self, delta: Delta) -> dict[str, Any]:
        return self._chunk(delta.choice, _delta(delta.event), logprobs=delta.logprobs)

    def _ended(self, end: Finished) -> dict[str, Any]:
        return self._chunk(end.choice, {}, end.reason, end.logprobs)

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        reason: str | None = None,
        logprobs: Sequence[TokenLogprobs] = (),
    ) -> dict[str, Any]:
        return {
            "index": choice,
            "delta": delta,
            "finish_reason": reason,
            "logprobs": self._logprobs(logprobs) if logprobs else None,
        }

    def _logprobs(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """OpenAI's figures of text tokens."""
        return {
            "content": token_logprobs(self.found.prompts.vocabulary, logprobs),
            "refusal": None,
        }
