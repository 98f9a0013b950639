"""The only place that builds an event-stream response."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus

_PING_S = 15


def event_stream(events: AsyncGenerator[str, None]) -> EventSourceResponse:
    """Each string becomes one `data:` event. `events` is closed when the client goes away."""
    # The library ends every stream at SIGTERM by default; ours run to their end.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # its own lack
    # Its default separator is CRLF, which many a hand-written client does not expect.
    return EventSourceResponse(_data(events), sep="\n", ping=_PING_S)


async def _data(events: AsyncGenerator[str, None]) -> AsyncGenerator[dict[str, str], None]:
    async with aclosing(events):
        async for event in events:
            yield {"data": event}
