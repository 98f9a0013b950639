"""When a request arrived, and until when its answer may take."""

import asyncio
from contextvars import ContextVar

# A time of the event loop's clock. It is None outside of a request.
arrived: ContextVar[float | None] = ContextVar("arrived", default=None)


def deadline(timeout_s: float) -> float:
    """Returns the time of the event loop's clock at which the request's time is up."""
    begun = arrived.get()
    return timeout_s + (asyncio.get_running_loop().time() if begun is None else begun)
