"""The endpoint `GET /v1/models`: the served model, in OpenAI's or in Anthropic's format."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request

from app.errors import dialect
from app.services import check_model, services_of

router = APIRouter()


@router.get("/models", include_in_schema=False)
@router.get("/v1/models")
async def models(http: Request) -> dict[str, Any]:
    if _speaks_anthropic(http):
        return _page(http)
    return {"object": "list", "data": [_model(http)]}


@router.get("/models/{name:path}", include_in_schema=False)
@router.get("/v1/models/{name:path}")
async def model(http: Request, name: str) -> dict[str, Any]:
    served = services_of(http).settings.model
    # A model may be a folder, and the slash before its name may have been taken for one too many.
    check_model(served if name == served.strip("/") else name, served)
    return _model_info(http) if _speaks_anthropic(http) else _model(http)


def _speaks_anthropic(http: Request) -> bool:
    return dialect(http.url.path, http.headers) == "anthropic"


def _page(http: Request) -> dict[str, Any]:
    """Returns Anthropic's list, which has pages. A page before or after the only model is empty."""
    info = _model_info(http)
    beyond = {http.query_params.get("after_id"), http.query_params.get("before_id")}
    shown = [] if info["id"] in beyond else [info]
    end = info["id"] if shown else None
    return {"data": shown, "has_more": False, "first_id": end, "last_id": end}


def _model_info(http: Request) -> dict[str, Any]:
    services = services_of(http)
    context_length = None if services.worker.ready is None else services.worker.ready.context_length
    return {
        "type": "model",
        "id": services.settings.model,
        "display_name": services.settings.model,
        "created_at": datetime.fromtimestamp(http.app.state.created, UTC).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": context_length,
        "max_tokens": context_length,
    }


def _model(http: Request) -> dict[str, Any]:
    """Returns OpenAI's fields and the lengths in tokens, null until the model is loaded."""
    services = services_of(http)
    ready = services.worker.ready
    context_length = None if ready is None else ready.context_length
    return {
        "id": services.settings.model,
        "object": "model",
        "created": http.app.state.created,
        "owned_by": "easel",
        "context_length": context_length,
        "max_model_len": context_length,  # the name that clients of vLLM read
        "canvas_length": None if ready is None else ready.canvas_length,
    }
