"""The endpoints for supervisors and for Prometheus."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.services import services_of

router = APIRouter()


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Returns 200 whenever the front end answers, whatever the worker's state."""
    return {"status": "live"}


@router.get("/health")
@router.get("/health/ready")
async def ready(http: Request) -> JSONResponse:
    """Returns 200 if a worker has loaded the model, else 503."""
    if services_of(http).worker.ready is not None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "no worker is ready"}, status_code=503)


@router.get("/metrics")
async def metrics(http: Request) -> Response:
    exposition = services_of(http).metrics.exposition()
    return Response(exposition, media_type="text/plain; version=0.0.4; charset=utf-8")
