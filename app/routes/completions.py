"""`POST /v1/completions`."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.errors import ApiError, BadRequest, error_body
from app.routes.generation import (
    Finished,
    Services,
    TextDelta,
    answer_events,
    check_model,
    parsed,
    services,
    worker_request,
)
from app.routes.waiting import unless_gone
from app.schemas.completions import CompletionRequest
from app.sse import event_stream
from engine.messages import GenerateRequest

router = APIRouter()


@router.post("/v1/completions")
async def completions(http: Request) -> Response:
    body = await parsed(http, CompletionRequest)
    found = services(http)
    check_model(body.model, found.settings.model)
    limits = found.worker.admit()
    if isinstance(body.prompt, str):
        prompt = await asyncio.to_thread(found.prompts.raw, body.prompt)
    else:
        prompt = body.prompt
        if max(prompt) >= limits.vocab_size:
            raise BadRequest(
                f"prompt: token ids must be below {limits.vocab_size}.", param="prompt"
            )
    request = worker_request(body, prompt, body.token_limit, limits)
    head = {
        "id": f"cmpl-{request.id}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": found.settings.model,
    }
    if body.stream:
        return event_stream(_chunks(found, request, body, head))
    return await unless_gone(http, _whole(found, request, body, head))


def _choice(text: str, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}


async def _whole(
    found: Services, request: GenerateRequest, body: CompletionRequest, head: dict[str, Any]
) -> Response:
    text = ""
    async for event in answer_events(found, request, body.stops):
        match event:
            case TextDelta(text=more):
                text += more
            case Finished():
                end = event
    figures = {"usage": end.figures.usage, "diffusion": end.figures.diffusion}
    return JSONResponse({**head, "choices": [_choice(text, end.reason)], **figures})


async def _chunks(
    found: Services, request: GenerateRequest, body: CompletionRequest, head: dict[str, Any]
) -> AsyncGenerator[str, None]:
    if body.include_usage:
        head = {**head, "usage": None}  # as the specification has it for every chunk but the last

    def chunk(text: str, reason: str | None, **more: Any) -> str:
        choices = [_choice(text, reason)]
        return json.dumps({**head, "choices": choices, **more}, ensure_ascii=False)

    try:
        async with aclosing(answer_events(found, request, body.stops)) as events:
            async for event in events:
                match event:
                    case TextDelta(text=text):
                        yield chunk(text, None)
                    case Finished(reason=reason, figures=figures):
                        yield chunk("", reason, diffusion=figures.diffusion)
                        if body.include_usage:
                            yield json.dumps({**head, "choices": [], "usage": figures.usage})
    except ApiError as error:
        yield json.dumps(error_body(error))
    yield "[DONE]"
