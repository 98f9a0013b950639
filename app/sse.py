"""The only place that builds an event-stream response."""

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus

_PING_S = 15


def event_stream(events: AsyncIterator[str]) -> EventSourceResponse:
    """Each string becomes one `data:` event."""
    # The library ends every stream at SIGTERM by default; ours run to their end.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # its own lack
    # Its default separator is CRLF, which many a hand-written client does not expect.
    return EventSourceResponse(_data(events), sep="\n", ping=_PING_S)


async def _data(events: AsyncIterator[str]) -> AsyncIterator[dict[str, str]]:
    async for event in events:
        yield {"data": event}
