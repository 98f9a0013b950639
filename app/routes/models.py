"""The endpoint `GET /v1/models`: the served model, in OpenAI's or in Anthropic's format.

A model with several names is listed once for each.
"""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request

from app.errors import dialect
from app.services import services_of

router = APIRouter()


@router.get("/models", include_in_schema=False)
@router.get("/v1/models")
async def models(http: Request) -> dict[str, Any]:
    if _speaks_anthropic(http):
        return _page(http)
    names = services_of(http).settings.model_names
    return {"object": "list", "data": [_model(http, name) for name in names]}


@router.get("/models/{name:path}", include_in_schema=False)
@router.get("/v1/models/{name:path}")
async def model(http: Request, name: str) -> dict[str, Any]:
    name = services_of(http).model_name(name)
    return _model_info(http, name) if _speaks_anthropic(http) else _model(http, name)


def _speaks_anthropic(http: Request) -> bool:
    return dialect(http.url.path, http.headers) == "anthropic"


def _page(http: Request) -> dict[str, Any]:
    """Returns Anthropic's list, whose pages begin behind one id or end before another."""
    names = list(services_of(http).settings.model_names)
    after, before = http.query_params.get("after_id"), http.query_params.get("before_id")
    begin = names.index(after) + 1 if after in names else 0
    end = names.index(before) if before in names else len(names)
    shown = [_model_info(http, name) for name in names[begin:end]]
    return {
        "data": shown,
        "has_more": False,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }


def _model_info(http: Request, name: str) -> dict[str, Any]:
    services = services_of(http)
    context_length = None if services.worker.ready is None else services.worker.ready.context_length
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(http.app.state.created, UTC).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": context_length,
        "max_tokens": context_length,
    }


def _model(http: Request, name: str) -> dict[str, Any]:
    """Returns OpenAI's fields, what a prompt may have, and the lengths in tokens.

    The lengths are null until the model is loaded.
    """
    services = services_of(http)
    ready = services.worker.ready
    context_length = None if ready is None else ready.context_length
    return {
        "id": name,
        "object": "model",
        "created": http.app.state.created,
        "owned_by": "easel",
        "context_length": context_length,
        "max_model_len": context_length,  # the name that clients of vLLM read
        "canvas_length": None if ready is None else ready.canvas_length,
        "input_modalities": ["text", "image"] if services.prompts.sees else ["text"],
    }
