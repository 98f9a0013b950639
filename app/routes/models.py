"""`GET /v1/models`: the one model that is served."""

from typing import Any

from fastapi import APIRouter, Request

from app.routes.generation import check_model, services

router = APIRouter()


@router.get("/v1/models")
async def models(http: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model(http)]}


@router.get("/v1/models/{name:path}")
async def model(http: Request, name: str) -> dict[str, Any]:
    check_model(name, services(http).settings.model)
    return _model(http)


def _model(http: Request) -> dict[str, Any]:
    return {
        "id": services(http).settings.model,
        "object": "model",
        "created": http.app.state.created,
        "owned_by": "easel",
    }
