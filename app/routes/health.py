"""Health for supervisors and figures for Prometheus."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.services import services_of

router = APIRouter()


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live")
async def live() -> dict[str, str]:
    """The front end answers, whatever the worker does."""
    return {"status": "live"}


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready")
async def ready(http: Request) -> JSONResponse:
    """200 while a worker with a loaded model is there."""
    if services_of(http).worker.ready is not None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "no worker is ready"}, status_code=503)


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics")
async def metrics(http: Request) -> Response:
    exposition = services_of(http).metrics.exposition()
    return Response(exposition, media_type="text/plain; version=0.0.4; charset=utf-8")
