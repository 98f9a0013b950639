"""`POST /v1/completions`."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.errors import ApiError, BadRequest, error_body
from app.gemma_format import TextDelta
from app.prompt import Prompt
from app.routes.body import parsed
from app.routes.generation import (
    Admission,
    AnswerRequest,
    Delta,
    Finished,
    Services,
    answer_events,
    check_model,
    diffusion,
    prepare,
    random_seed,
    services,
    usage,
    whole_answers,
)
from app.routes.waiting import unless_gone
from app.schemas.completions import CompletionRequest
from app.sse import event_stream
from engine.messages import GenerateRequest, Ready, TokenLogprobs

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
        "object": "text_completion",
        "created": int(time.time()),
        "model": found.settings.model,
    }
    answer = _Answer(found, body, request, prepared, head)
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
class _Answer:
    """One request with all that its answer is made of."""

    found: Services
    body: CompletionRequest
    request: AnswerRequest
    prepared: Sequence[GenerateRequest]
    head: dict[str, Any]

    async def whole(self) -> Response:
        choices = await whole_answers(self.found, self.request, self.prepared)
        figures = [choice.end.figures for choice in choices]
        offsets = [0] * len(choices)
        return JSONResponse(
            {
                **self.head,
                "choices": [
                    self._choice(
                        index,
                        self._echo(index) + choice.text,
                        choice.end.reason,
                        choice.logprobs,
                        offsets,
                    )
                    for index, choice in enumerate(choices)
                ],
                "usage": usage(figures, self.request.n),
                "diffusion": diffusion(figures),
            }
        )

    async def chunks(self) -> AsyncGenerator[str, None]:
        head, offsets = self.head, [0] * self.request.choices
        if self.body.include_usage:
            head = {**head, "usage": None}  # as the specification has it for all but the last

        def chunk(
            index: int,
            text: str,
            reason: str | None = None,
            logprobs: Sequence[TokenLogprobs] = (),
            **more: Any,
        ) -> str:
            choice = self._choice(index, text, reason, logprobs, offsets)
            return json.dumps({**head, "choices": [choice], **more}, ensure_ascii=False)

        ends: dict[int, Finished] = {}
        if self.body.echo:
            for index in range(self.request.choices):
                yield chunk(index, self._echo(index))
        try:
            events = answer_events(self.found, self.request, self.prepared)
            async with aclosing(events):
                async for event in events:
                    match event:
                        case Delta(choice=index, event=TextDelta(text=text), logprobs=logprobs):
                            yield chunk(index, text, None, logprobs)
                        case Finished(choice=index, reason=reason, logprobs=logprobs):
                            ends[index] = event
                            last = diffusion([event.figures])
                            yield chunk(index, "", reason, logprobs, diffusion=last)
            if self.body.include_usage:
                figures = [ends[index].figures for index in range(self.request.choices)]
                last_usage = usage(figures, self.request.n)
                yield json.dumps({**head, "choices": [], "usage": last_usage})
        except ApiError as error:
            yield json.dumps(error_body(error))
        yield "[DONE]"

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
        reason: str | None,
        logprobs: Sequence[TokenLogprobs],
        offsets: list[int],
    ) -> dict[str, Any]:
        """`offsets` are where each choice's next token begins in its text, and are moved on."""
        found = None
        if self.body.logprobs is not None and logprobs:
            tokens = [self._token(each.token) for each in logprobs]
            ends = list(accumulate(map(len, tokens), initial=offsets[index]))
            *starts, offsets[index] = ends
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
