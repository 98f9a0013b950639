"""`POST /tokenize` and `/detokenize`: what a text or a conversation is to the model."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from app.errors import BadRequest
from app.routes.body import parsed
from app.routes.chat import template_messages
from app.routes.generation import Services, check_model, services
from app.schemas.tokens import DetokenizeRequest, TokenizeRequest

router = APIRouter()


@router.post("/tokenize")
async def tokenize(http: Request) -> dict[str, Any]:
    body = await parsed(http, TokenizeRequest)
    found = services(http)
    check_model(body.model, found.settings.model)
    limits = found.worker.limits()
    tokens = await asyncio.to_thread(_tokens, found, body)
    return {"count": len(tokens), "max_model_len": limits.context_length, "tokens": tokens}


def _tokens(found: Services, body: TokenizeRequest) -> list[int]:
    if body.messages is not None:
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
        options = body.chat_template_kwargs
        thinking = options is not None and bool(options.enable_thinking)
        messages = template_messages(body.messages)
        return found.prompts.chat(messages, tools, thinking=thinking).tokens
    assert body.prompt is not None, "the schema asks for one of both"
    if body.add_special_tokens:
        return found.prompts.raw(body.prompt).tokens
    return found.prompts.vocabulary.encode_literally(body.prompt)


@router.post("/detokenize")
async def detokenize(http: Request) -> dict[str, Any]:
    body = await parsed(http, DetokenizeRequest)
    found = services(http)
    check_model(body.model, found.settings.model)
    limits = found.worker.limits()
    if any(token >= limits.vocab_size for token in body.tokens):
        raise BadRequest(f"tokens: ids must be below {limits.vocab_size}.", param="tokens")
    return {"prompt": await asyncio.to_thread(found.prompts.vocabulary.decode, body.tokens)}
