"""`POST /v1/chat/completions`."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.errors import ApiError, error_body
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
from app.schemas.chat import ChatCompletionRequest
from app.sse import event_stream
from engine.messages import GenerateRequest

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(http: Request) -> Response:
    body = await parsed(http, ChatCompletionRequest)
    found = services(http)
    check_model(body.model, found.settings.model)
    limits = found.worker.admit()
    messages = [{"role": message.role, "content": message.text} for message in body.messages]
    prompt = await asyncio.to_thread(found.prompts.chat, messages)
    request = worker_request(body, prompt, body.token_limit, limits)
    head = {
        "id": f"chatcmpl-{request.id}",
        "created": int(time.time()),
        "model": found.settings.model,
    }
    if body.stream:
        return event_stream(_chunks(found, request, body, head))
    return await unless_gone(http, _whole(found, request, body, head))


async def _whole(
    found: Services, request: GenerateRequest, body: ChatCompletionRequest, head: dict[str, Any]
) -> Response:
    text = ""
    async for event in answer_events(found, request, body.stops):
        match event:
            case TextDelta(text=more):
                text += more
            case Finished():
                end = event
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": end.reason, "logprobs": None}
    return JSONResponse(
        {
            **head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": end.figures.usage,
            "diffusion": end.figures.diffusion,
        }
    )


async def _chunks(
    found: Services, request: GenerateRequest, body: ChatCompletionRequest, head: dict[str, Any]
) -> AsyncGenerator[str, None]:
    head = {**head, "object": "chat.completion.chunk"}
    if body.include_usage:
        head["usage"] = None  # as the specification has it for every chunk but the last

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return json.dumps({**head, "choices": [choice], **more}, ensure_ascii=False)

    yield chunk({"role": "assistant", "content": ""})
    try:
        async with aclosing(answer_events(found, request, body.stops)) as events:
            async for event in events:
                match event:
                    case TextDelta(text=text):
                        yield chunk({"content": text})
                    case Finished(reason=reason, figures=figures):
                        yield chunk({}, reason, diffusion=figures.diffusion)
                        if body.include_usage:
                            yield json.dumps({**head, "choices": [], "usage": figures.usage})
    except ApiError as error:
        yield json.dumps(error_body(error))
    yield "[DONE]"
