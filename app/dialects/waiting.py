"""Waits for an answer only as long as its client stays connected."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import Request, Response

CLIENT_CLOSED_REQUEST = 499  # nginx's status for this case; the client is not there to read it


async def unless_gone(http: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """Returns the response. If the client disconnects first, `answer` is cancelled instead."""
    working = asyncio.create_task(answer)
    leaving = asyncio.create_task(disconnect(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def disconnect(http: Request) -> None:
    """Wait until the client has left. The request's body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
