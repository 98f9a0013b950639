"""Event-stream responses. Every endpoint that streams builds its response here."""

import asyncio
from collections.abc import AsyncGenerator, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus

# By default the library cuts all streams at SIGTERM, also those that begin later. Ours run to their
# end, so this is said before any server can get the signal.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # it lacks annotations

# The key of a function in a scope's state that returns how many bytes its client has not received.
UNRECEIVED = "unreceived_bytes"

# Characters that JSON allows in strings, but at which many clients end a line: Python's splitlines
# and JavaScript before 2019. As escapes they mean the same.
_LINE_ENDS = ("\x85", "\u2028", "\u2029")


@dataclass(frozen=True)
class NamedEvent:
    """An event with a name, as the Responses API and Anthropic's Messages API send them."""

    name: str
    data: str


@dataclass(frozen=True)
class Comment:
    """A line that clients skip.

    No blank line follows it, because some clients read that as the end of an event without data:
    openai-go before 3.43 fails then. Continue takes a comment that begins with "ping" for the end
    of the stream.
    """

    text: str


Event = str | NamedEvent | Comment


def unreceived_bytes(scope: MutableMapping[str, Any]) -> int:
    """Returns how many bytes were sent that the client of this scope has not received yet.

    A proxy in between counts as the client. Returns 0 if the server does not know the number.
    """
    count: Callable[[], int] | None = scope.get("state", {}).get(UNRECEIVED)
    return 0 if count is None else count()


def _keep_alive() -> Event:
    return Comment("keep-alive")


def event_stream(
    events: AsyncGenerator[Event, None],
    idle_s: float,
    keep_alive: Callable[[], Event] = _keep_alive,
) -> EventSourceResponse:
    """Returns a response that sends each item as one event. A string is an event without a name.

    Whenever no event has come for `idle_s` seconds, it sends the one that `keep_alive` returns.
    The generator is closed when the client disconnects.
    """
    # The default separator is CRLF, which many hand-written clients do not expect. The library's
    # own keep-alive is off, because it is the same for all dialects.
    return EventSourceResponse(_encoded(_kept_alive(events, idle_s, keep_alive)), sep="\n", ping=0)


async def _kept_alive(
    events: AsyncGenerator[Event, None], idle_s: float, keep_alive: Callable[[], Event]
) -> AsyncGenerator[Event, None]:
    """Yields the events, and a keep-alive whenever the next one is not there in time."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=idle_s)
            if not done:
                yield keep_alive()
                continue
            event = coming.result()
            if event is None:
                return
            yield event
            coming = asyncio.ensure_future(anext(events, None))
    finally:
        # A generator that runs can't be closed, but ends when it is cancelled.
        if not coming.cancel():
            await events.aclose()


async def _encoded(
    events: AsyncGenerator[Event, None],
) -> AsyncGenerator[dict[str, str] | bytes, None]:
    async with aclosing(events):
        async for event in events:
            match event:
                case NamedEvent(name=name, data=data):
                    yield {"event": name, "data": _on_one_line(data)}
                case Comment(text=text):
                    yield f": {text}\n".encode()
                case str():
                    yield {"data": _on_one_line(event)}


def _on_one_line(data: str) -> str:
    """Returns JSON without the characters that some clients take for the end of a line."""
    for character in _LINE_ENDS:
        data = data.replace(character, f"\\u{ord(character):04x}")
    return data
