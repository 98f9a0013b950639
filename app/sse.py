"""The only place that builds an event-stream response."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus

_PING_S = 15


@dataclass(frozen=True)
class NamedEvent:
    """An event with a name of its own, as some dialects have them."""

    name: str
    data: str


def event_stream(events: AsyncGenerator[str | NamedEvent, None]) -> EventSourceResponse:
    """Each becomes one event, a string a nameless one; closed when the client goes away."""
    # The library ends every stream at SIGTERM by default; ours run to their end.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # its own lack
    # Its default separator is CRLF, which many a hand-written client does not expect.
    return EventSourceResponse(_data(events), sep="\n", ping=_PING_S)


async def _data(
    events: AsyncGenerator[str | NamedEvent, None],
) -> AsyncGenerator[dict[str, str], None]:
    async with aclosing(events):
        async for event in events:
            match event:
                case NamedEvent(name=name, data=data):
                    yield {"event": name, "data": data}
                case str():
                    yield {"data": event}
