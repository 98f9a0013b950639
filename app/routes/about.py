"""What this server is: asked for by people, and by clients that look whether anyone is there."""

from importlib.metadata import version

from fastapi import APIRouter

router = APIRouter()


@router.head("/", include_in_schema=False)
@router.get("/")
async def root() -> dict[str, str]:
    return {"name": "easel", **await about()}


@router.get("/version")
async def about() -> dict[str, str]:
    return {"version": version("easel-server")}
