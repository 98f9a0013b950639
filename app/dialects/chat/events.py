"""A chat's answer as OpenAI's JSON, whole or as chunks."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.answer.generation import Choice, Delta, Finished
from app.chat_format.events import Event, TextDelta, ThinkingDelta, ToolCallDelta, ToolCallEnd
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.logprobs import token_logprobs
from app.dialects.openai_answer import OpenAIAnswer
from engine.messages import TokenLogprobs


@dataclass(frozen=True)
class ChatAnswer(OpenAIAnswer):
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    endpoint = "/v1/chat/completions"

    body: ChatCompletionRequest

    def _prompt_head(self) -> dict[str, Any]:
        (prompt,) = self.request.prompts
        return {"prompt_token_ids": prompt.tokens} if self.body.return_token_ids else {}

    def _whole(self, choice: Choice) -> dict[str, Any]:
        calls = choice.calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not choice.text else choice.text,
            "refusal": None,
        }
        if choice.thinking and self.body.shows_thoughts:
            message |= _thinking(choice.thinking)
        if calls:
            message["tool_calls"] = [_new_call(call.name, call.arguments) for call in calls]
        with_logprobs = self.request.sampling.top_logprobs is not None
        return {
            "index": choice.end.choice,
            "message": message,
            "finish_reason": choice.end.reason,
            "logprobs": self._logprobs(choice.logprobs) if with_logprobs else None,
        }

    def _openings(self) -> Iterator[dict[str, Any]]:
        for choice in range(self.request.choices):
            yield self._chunk(choice, {"role": "assistant", "content": ""})

    def _added(self, delta: Delta) -> dict[str, Any] | None:
        hidden = isinstance(delta.event, ThinkingDelta) and not self.body.shows_thoughts
        added = None if hidden else _delta(delta.event)
        if added is None and not (self.body.return_token_ids and delta.tokens):
            return None
        return self._chunk(delta.choice, added or {}, logprobs=delta.logprobs)

    def _nothing(self, choice: int) -> dict[str, Any]:
        return self._chunk(choice, {})

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
        return {
            "content": token_logprobs(self.services.prompts.vocabulary, logprobs),
            "refusal": None,
        }


def _thinking(text: str) -> dict[str, str]:
    """Returns a thought under both field names that clients read."""
    return {"reasoning_content": text, "reasoning": text}


def _new_call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _delta(event: Event) -> dict[str, Any] | None:
    """Returns what the event adds to the message, or None if it adds nothing."""
    match event:
        case TextDelta(text=text):
            return {"content": text}
        case ThinkingDelta(text=text):
            return _thinking(text)
        case ToolCallDelta(index=index, name=str() as name, arguments=arguments):
            return {"tool_calls": [{"index": index, **_new_call(name, arguments)}]}
        case ToolCallDelta(index=index, arguments=arguments):
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
        case ToolCallEnd():
            return None
