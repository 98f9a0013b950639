"""The endpoints `/` and `/version`, by which people and clients check that Easel is running."""

from importlib.metadata import version

from fastapi import APIRouter

router = APIRouter()


@router.get("/")
async def root() -> dict[str, str]:
    """Returns name and version. A request that accepts HTML gets the web page instead."""
    return {"name": "easel", **await about()}


@router.get("/version")
async def about() -> dict[str, str]:
    return {"version": version("easel-server")}
