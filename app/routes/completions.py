"""`POST /v1/completions`."""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from app.errors import BadRequest
from app.gemma_format import TextDelta
from app.prompt import Prompt
from app.routes.body import parsed
from app.routes.generation import (
    Admission,
    AnswerRequest,
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
from app.schemas.completions import CompletionRequest
from app.sse import event_stream
from engine.messages import Ready, TokenLogprobs

router = APIRouter()


@router.post("/completions", include_in_schema=False)
@router.post("/v1/completions")
async def completions(http: Request, admit: Admission) -> Response:
    body = await parsed(http, CompletionRequest)
    found = services(http)
    check_model(body.model, found.settings.model)
    n = body.n or 1
    limits = admit(len(body.prompts) * n, param="prompt" if n == 1 else "n")
    request = await asyncio.to_thread(_request, found, body, limits)
    prepared = prepare(request, limits)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": found.settings.model,
    }
    answer = _CompletionAnswer(found, request, prepared, head, body.include_usage, body)
    if body.stream:
        return event_stream(answer.chunks())
    return await unless_gone(http, answer.whole())


def _request(found: Services, body: CompletionRequest, limits: Ready) -> AnswerRequest:
    return AnswerRequest(
        [_prompt(found, prompt, limits) for prompt in body.prompts],
        msgspec.structs.replace(
            body.sampling(random_seed()),
            top_logprobs=body.logprobs,
            suffix=found.prompts.vocabulary.encode_literally(body.suffix) if body.suffix else [],
        ),
        body.token_limit,
        "prompt",
        timeout_s=body.timeout,
        n=body.n or 1,
        stops=body.stops,
    )


def _prompt(found: Services, prompt: str | list[int], limits: Ready) -> Prompt:
    if isinstance(prompt, str):
        return found.prompts.raw(prompt)
    if max(prompt) >= limits.vocab_size:
        raise BadRequest(f"prompt: token ids must be below {limits.vocab_size}.", param="prompt")
    return Prompt(prompt)


@dataclass(frozen=True)
class _CompletionAnswer(OpenAIAnswer):
    object = "text_completion"
    chunk_object = "text_completion"

    body: CompletionRequest
    # By choice: where its next token begins in its text.
    offsets: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def _whole(self, choice: Choice) -> dict[str, Any]:
        text = self._echo(choice.end.choice) + choice.text
        return self._choice(choice.end.choice, text, choice.end.reason, choice.logprobs)

    def _openings(self) -> Iterator[dict[str, Any]]:
        if self.body.echo:
            for index in range(self.request.choices):
                yield self._choice(index, self._echo(index))

    def _added(self, delta: Delta) -> dict[str, Any]:
        assert isinstance(delta.event, TextDelta)  # a raw completion is all text
        return self._choice(delta.choice, delta.event.text, None, delta.logprobs)

    def _ended(self, end: Finished) -> dict[str, Any]:
        return self._choice(end.choice, "", end.reason, end.logprobs)

    def _echo(self, index: int) -> str:
        """The prompt as text, if it is asked for."""
        if not self.body.echo:
            return ""
        prompt = self.body.prompts[index // self.request.n]
        if isinstance(prompt, str):
            return prompt
        return self.found.prompts.vocabulary.decode(prompt)

    def _choice(
        self,
        index: int,
        text: str,
        reason: str | None = None,
        logprobs: Sequence[TokenLogprobs] = (),
    ) -> dict[str, Any]:
        found = None
        if self.body.logprobs is not None and logprobs:
            tokens = [self._token(each.token) for each in logprobs]
            ends = accumulate(map(len, tokens), initial=self.offsets[index])
            *starts, self.offsets[index] = ends
            found = {
                "tokens": tokens,
                "token_logprobs": [each.logprob for each in logprobs],
                "top_logprobs": [
                    {self._token(token): logprob for token, logprob in each.top}
                    for each in logprobs
                ],
                "text_offset": starts,
            }
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": found}

    def _token(self, token: int) -> str:
        return self.found.prompts.vocabulary.token_bytes(token).decode(errors="replace")
