"""Event-stream responses. Every endpoint that streams builds its response here."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus

_PING_S = 15


@dataclass(frozen=True)
class NamedEvent:
    """An event with a name, as the Responses API and Anthropic's Messages API send them."""

    name: str
    data: str


def event_stream(events: AsyncGenerator[str | NamedEvent, None]) -> EventSourceResponse:
    """Returns a response that sends each item as one event. A string is an event without a name.

    The generator is closed when the client disconnects.
    """
    # By default the library cuts all streams at SIGTERM. Ours run to their end.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # it lacks annotations
    # The default separator is CRLF, which many hand-written clients do not expect.
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
