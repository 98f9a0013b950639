"""Health for supervisors and figures for Prometheus."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.routes.generation import services

router = APIRouter()


@router.api_route("/health/live", methods=["GET", "HEAD"])
async def live() -> dict[str, str]:
    """The front end answers, whatever the worker does."""
    return {"status": "live"}


@router.api_route("/health/ready", methods=["GET", "HEAD"])
async def ready(http: Request) -> JSONResponse:
    """200 while a worker with a loaded model is there."""
    if services(http).worker.ready is not None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "no worker is ready"}, status_code=503)


@router.api_route("/metrics", methods=["GET", "HEAD"])
async def metrics(http: Request) -> Response:
    exposition = services(http).metrics.exposition()
    return Response(exposition, media_type="text/plain; version=0.0.4; charset=utf-8")
