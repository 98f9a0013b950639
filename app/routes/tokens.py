"""The endpoints `POST /tokenize` and `/detokenize`: the tokens of a text or a conversation."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from app.dialects.chat.turns import chat_prompt, conversation
from app.dialects.incoming import incoming
from app.errors import BadRequest
from app.routes.tokens_schema import (
    DetokenizeRequest,
    TokenizeChat,
    TokenizeRequest,
    TokenizeText,
)
from app.services import Services, services_of
from engine.messages import Ready

router = APIRouter()


@router.post("/tokenize")
async def tokenize(http: Request) -> Response:
    services = services_of(http)
    async with incoming(http, TokenizeRequest) as arriving:
        body = arriving.body.root
        services.model_name(body.model)
        limits = services.worker.limits()
        if isinstance(body, TokenizeChat):
            turns = await arriving.run(conversation, body.messages)
            pictures = await arriving.pictures(turns)
            prompt = await arriving.run(chat_prompt, services.prompts, body, turns, pictures)
            tokens = prompt.tokens
        else:
            tokens = await arriving.run(_tokens, services, body)
        return await arriving.run(_tokenized, tokens, limits)


def _tokens(services: Services, body: TokenizeText) -> list[int]:
    if body.add_special_tokens is not False:
        return services.prompts.raw(body.prompt).tokens
    return services.prompts.raw_tokens(body.prompt)


def _tokenized(tokens: list[int], limits: Ready) -> Response:
    body = {"count": len(tokens), "max_model_len": limits.context_length, "tokens": tokens}
    return Response(msgspec.json.encode(body), media_type="application/json")


@router.post("/detokenize")
async def detokenize(http: Request) -> dict[str, Any]:
    services = services_of(http)
    async with incoming(http, DetokenizeRequest) as arriving:
        body = arriving.body
        services.model_name(body.model)
        limits = services.worker.limits()
        largest = max(body.tokens, default=0)
        if largest >= limits.vocab_size:
            raise BadRequest(
                f"tokens: {largest} is not a token id; ids must be below {limits.vocab_size}.",
                param="tokens",
            )
        return {"prompt": await arriving.run(services.prompts.vocabulary.decode, body.tokens)}
