"""`GET /v1/models`: the one model that is served."""

from typing import Any

from fastapi import APIRouter, Request

from app.routes.generation import services

router = APIRouter()


@router.get("/v1/models")
async def models(http: Request) -> dict[str, Any]:
    model = {
        "id": services(http).settings.model,
        "object": "model",
        "created": http.app.state.created,
        "owned_by": "easel",
    }
    return {"object": "list", "data": [model]}
