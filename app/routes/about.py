"""The endpoints `/` and `/version`, by which people and clients check that Easel is running."""

from fastapi import APIRouter

from app.services import VERSION

router = APIRouter()


@router.get("/")
async def root() -> dict[str, str]:
    """Returns name and version. A request that accepts HTML gets the web page instead."""
    return {"name": "easel", **await about()}


@router.get("/version")
async def about() -> dict[str, str]:
    return {"version": VERSION}
