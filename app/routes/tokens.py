"""The endpoints `POST /tokenize` and `/detokenize`: the tokens of a text or a conversation."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from app.dialects.body import parsed
from app.dialects.chat.turns import chat_prompt
from app.errors import BadRequest
from app.routes.tokens_schema import (
    DetokenizeRequest,
    TokenizeChat,
    TokenizeRequest,
    TokenizeText,
)
from app.services import Services, services_of

router = APIRouter()


@router.post("/tokenize")
async def tokenize(http: Request) -> dict[str, Any]:
    body = (await parsed(http, TokenizeRequest)).root
    services = services_of(http)
    services.model_name(body.model)
    limits = services.worker.limits()
    tokens = await asyncio.to_thread(_tokens, services, body)
    return {"count": len(tokens), "max_model_len": limits.context_length, "tokens": tokens}


def _tokens(services: Services, body: TokenizeText | TokenizeChat) -> list[int]:
    if isinstance(body, TokenizeChat):
        return chat_prompt(services.prompts, body).tokens
    if body.add_special_tokens is not False:
        return services.prompts.raw(body.prompt).tokens
    return services.prompts.vocabulary.encode_literally(body.prompt)


@router.post("/detokenize")
async def detokenize(http: Request) -> dict[str, Any]:
    body = await parsed(http, DetokenizeRequest)
    services = services_of(http)
    services.model_name(body.model)
    limits = services.worker.limits()
    largest = max(body.tokens, default=0)
    if largest >= limits.vocab_size:
        raise BadRequest(
            f"tokens: {largest} is not a token id; ids must be below {limits.vocab_size}.",
            param="tokens",
        )
    return {"prompt": await asyncio.to_thread(services.prompts.vocabulary.decode, body.tokens)}
