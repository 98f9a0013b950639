"""`GET /v1/models`: the one model that is served."""

from typing import Any

from fastapi import APIRouter, Request

from app.routes.generation import check_model, services

router = APIRouter()


@router.get("/models", include_in_schema=False)
@router.get("/v1/models")
async def models(http: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model(http)]}


@router.get("/models/{name:path}", include_in_schema=False)
@router.get("/v1/models/{name:path}")
async def model(http: Request, name: str) -> dict[str, Any]:
    check_model(name, services(http).settings.model)
    return _model(http)


def _model(http: Request) -> dict[str, Any]:
    """OpenAI's fields and the lengths, in tokens, which are null until the model is loaded."""
    found = services(http)
    ready = found.worker.ready
    context_length = None if ready is None else ready.context_length
    return {
        "id": found.settings.model,
        "object": "model",
        "created": http.app.state.created,
        "owned_by": "easel",
        "context_length": context_length,
        "max_model_len": context_length,  # the name under which vLLM's clients look for it
        "canvas_length": None if ready is None else ready.canvas_length,
    }
