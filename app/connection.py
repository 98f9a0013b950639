"""A client's connection: uvicorn's, with the bounds and the refusals that uvicorn lacks.

uvicorn waits without end for the headers and the body of a request, answers what is not HTTP in
plain text, and keeps as many idle connections as the system allows. Here both have a deadline,
refusals have the envelope of the request's dialect, and the connection that has been idle for the
longest makes room for a new one.

A request whose headers are complete belongs to the app. If its body breaks off or is not what it
should be, this file only notes the error, which the app raises where it reads the body.
"""

import json
import logging
import re
import sys
import termios
import uuid
from asyncio import TimerHandle, Transport
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from typing import Any, Literal, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.errors import (
    ApiError,
    MalformedHttp,
    RequestTimeout,
    TooManyRequests,
    dialect,
    error_body,
)
from app.listening_socket import most_descriptors
from app.logs import request_id
from app.middleware import meant_path
from app.request_body import BROKEN
from app.settings import Settings
from app.sse import UNRECEIVED

MOST_HEAD_BYTES = 64 * 2**10  # of a request line and its headers
MOST_HEADERS = 100
MOST_CHUNKS = 65_536  # of one body; each takes microseconds on the event loop
LEAST_BYTES_PER_S = 16 * 2**10  # of a body that takes longer than the receive timeout
KEEP_ALIVE_S = 75  # clients close idle connections sooner (httpx after 5 s)
_ARRIVING_BODIES = 8  # as many of the largest size may arrive at the same time
_SMALL_BODY_BYTES = 2**20  # a body that is no larger is never refused because of others
_RETRY_AFTER_S = 5
_LINGER_S = 2.0  # in which a client can read why it was refused, before the connection is reset
# Shares of the descriptors that clients may use. Connections that are accepted together are all
# there before the first of them can make room, and what has to go needs a moment too.
_CONNECTIONS = 1 / 2
_ACCEPTED = 1 / 8
_MOST_ACCEPTED = 2048  # uvicorn's default

_HEAD = re.compile(rb"[!-~]{1,32} ([!-~]{1,2048})")
_OF_ANTHROPIC = re.compile(rb"^anthropic-version:", re.IGNORECASE | re.MULTILINE)

logger = logging.getLogger(__name__)

# What the server waits for: a first byte, the end of the headers, the end of the body, the end of a
# body that is no longer read because its answer has been sent, or nothing.
_Awaited = Literal["request", "headers", "body", "leftover", "nothing"]


class _Requests(h11.Connection):
    """Parses requests. Raises h11.RemoteProtocolError also for what h11 itself would accept."""

    head = b""  # the first bytes of the request that is being read, until its headers are complete
    method = b""  # of the last request, if its headers could be parsed
    count = 0  # requests so far
    body_bytes = 0  # of the last request's body so far
    error: h11.RemoteProtocolError | None = None
    _chunks = 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            self.head, self.method = self.trailing_data[0], b""
        try:
            event = super().next_event()
            match event:
                case h11.Request():
                    self.method = event.method
                    self.count, self.body_bytes, self._chunks = self.count + 1, 0, 0
                    _check_head(event)
                case h11.Data():
                    self.body_bytes += len(event.data)
                    self._chunks += event.chunk_start
                    if self._chunks > MOST_CHUNKS:
                        raise h11.RemoteProtocolError(f"the body has over {MOST_CHUNKS} chunks")
        except h11.RemoteProtocolError as error:
            self.error = error
            raise
        return event


def _check_head(request: h11.Request) -> None:
    names = {name for name, _ in request.headers}
    size = sum(len(name) + len(value) + 4 for name, value in request.headers)
    if len(request.headers) > MOST_HEADERS or len(request.target) + size > MOST_HEAD_BYTES:
        raise h11.RemoteProtocolError("the headers are too large", error_status_hint=431)
    if not request.http_version.startswith(b"1."):
        raise h11.RemoteProtocolError("only HTTP/1.1 is spoken here", error_status_hint=505)
    if b"transfer-encoding" in names and (
        b"content-length" in names or request.http_version < b"1.1"
    ):
        # A proxy in front might see the end of this body elsewhere, and take what follows for
        # another client's request.
        raise h11.RemoteProtocolError(
            "Transfer-Encoding is not allowed together with Content-Length or in HTTP/1.0"
        )


class _LingeringTransport:
    """A transport with another way to close, which uvicorn's answers then take."""

    def __init__(self, transport: Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._close = close
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._close()

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()


class HttpConnection(H11Protocol):
    """One connection. `http_connection` makes a class of it that has the settings."""

    receive_timeout_s: float
    most_connections: int
    most_arriving_bytes: int  # of all bodies that are not complete

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn: _Requests = _Requests(h11.SERVER, MOST_HEAD_BYTES)
        self._awaited: tuple[_Awaited, int] = ("nothing", 0)
        self._since = 0.0  # when the server began to wait for it
        self._deadline: TimerHandle | None = None
        self._refuses = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self._plain_transport = transport
        self.app_state = {**self.app_state, UNRECEIVED: self.unreceived_bytes}
        self._lingering_transport = _LingeringTransport(transport, self._close)
        self.transport = cast(Transport, self._lingering_transport)
        self._watch()
        if len(self.connections) > self.most_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_deadline(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._lingering_transport.lingers:
            super().data_received(data)
            self._watch()
            if self._awaited[0] == "body" and self.conn.body_bytes > _SMALL_BODY_BYTES:
                self._bound_bodies()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def unreceived_bytes(self) -> int:
        """Returns how many bytes were written that the client's system has not confirmed yet."""
        socket = self._plain_transport.get_extra_info("socket")
        try:
            queued = int.from_bytes(ioctl(socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:  # the client may have left
            queued = 0
        return queued + self._plain_transport.get_write_buffer_size()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._since = self.loop.time()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's signature
        """Refuse what the parser does not accept."""
        assert self.conn.error is not None
        status = self.conn.error.error_status_hint
        why = str(self.conn.error).partition(": b")[0]  # h11 quotes there what the client sent
        if status == 431:
            why = f"its headers are more than {MOST_HEAD_BYTES} bytes or {MOST_HEADERS} lines"
        error = MalformedHttp(f"The request is not valid HTTP/1.1: {why}.", status)
        if self._is_answering():
            self._break_body(error)
        else:
            self._refuse(error)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Set the deadline anew if the server waits for something else than before."""
        awaited = (self._now_awaited(), self.conn.count)
        if awaited == self._awaited or self.transport.is_closing():
            return
        self._awaited, self._since = awaited, self.loop.time()
        match awaited[0]:
            case "nothing":
                self._set_deadline(None)
            case "request":
                self._set_deadline(KEEP_ALIVE_S)
            case _:
                self._set_deadline(self.receive_timeout_s)

    def _now_awaited(self) -> _Awaited:
        state = self.conn.their_state
        if state is h11.IDLE:
            return "headers" if self.conn.head else "request"
        if state is not h11.SEND_BODY:
            return "nothing"
        return "body" if self._is_answering() else "leftover"

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        allowed = f"{self.receive_timeout_s:g} s (receive_timeout_s)"
        match self._awaited[0]:
            case "body" if self.flow.read_paused or self.cycle.waiting_for_100_continue:
                # The app does not read at the moment, so the client is not to blame.
                self._since = self.loop.time()
                self._set_deadline(self.receive_timeout_s)
            case "body":
                earned = self.conn.body_bytes / LEAST_BYTES_PER_S
                left = self._since + self.receive_timeout_s + earned - self.loop.time()
                if left > 0:
                    self._set_deadline(left)
                else:
                    self._break_body(
                        RequestTimeout(
                            f"The request's body did not arrive in {allowed} and one more for each "
                            f"{LEAST_BYTES_PER_S} bytes of it."
                        )
                    )
            case "headers":
                self._refuse(RequestTimeout(f"The request's headers did not arrive in {allowed}."))
            case _:
                self._plain_transport.close()

    def _break_body(self, error: ApiError) -> None:
        """Let the app raise `error` where it reads the body, and close the connection behind it."""
        self._set_deadline(None)
        self._awaited = ("nothing", self.conn.count)
        self.cycle.scope["state"][BROKEN] = error
        self.cycle.keep_alive = False
        self.cycle.message_event.set()

    def _refuse(self, error: ApiError) -> None:
        """Answer a request that does not reach the app, and close the connection."""
        self._set_deadline(None)
        if self.transport.is_closing() or self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._plain_transport.close()
            return
        self._refuses = True
        name = f"req-{uuid.uuid4().hex}"
        log_id = request_id.set(name)
        logger.info("refused with status %d: %s", error.status, error.message)
        request_id.reset(log_id)
        target = _HEAD.match(self.conn.head)
        path = meant_path(target[1].partition(b"?")[0].decode()) if target else "/"
        of_anthropic = {"anthropic-version": ""} if _OF_ANTHROPIC.search(self.conn.head) else {}
        body = json.dumps(error_body(error, dialect(path, of_anthropic), name)).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": name,
            "request-id": name,
            **error.headers,
        }
        sent = [(key.encode(), value.encode()) for key, value in headers.items()]
        response = h11.Response(
            status_code=error.status, headers=[*self.server_state.default_headers, *sent]
        )
        for event in (
            response,
            h11.Data(data=b"" if self.conn.method == b"HEAD" else body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _close(self) -> None:
        """Close the connection, but let a client that still sends read its answer first.

        If the system had to drop what the client sends, it would reset the connection, and drop the
        answer too.
        """
        if not (self._refuses or self.conn.their_state in (h11.SEND_BODY, h11.ERROR)):
            self._plain_transport.close()
        elif not self.transport.is_closing():
            self._lingering_transport.lingers = True
            self.flow.resume_reading()
            with suppress(OSError):  # the client may have left
                self._plain_transport.write_eof()
            self._set_deadline(None)
            self._deadline = self.loop.call_later(_LINGER_S, self._plain_transport.abort)

    def _others(self) -> list["HttpConnection"]:
        """Returns the server's other connections that are open."""
        connections = [each for each in self.connections if isinstance(each, HttpConnection)]
        return [c for c in connections if c is not self and not c._plain_transport.is_closing()]

    def _make_room(self) -> None:
        """Close the connection that has waited for its client the longest, if any has.

        First those that are idle or get headers, then those that get a body, and at last those
        whose client does not read its answer.
        """

        def order(each: HttpConnection) -> tuple[bool, bool, float]:
            return each.flow.write_paused, each._is_answering(), each._since

        waiting = [c for c in self._others() if c._awaited[0] != "nothing" or c.flow.write_paused]
        if waiting:
            min(waiting, key=order)._plain_transport.abort()

    def _bound_bodies(self) -> None:
        """Refuse the largest of the bodies that are arriving if all of them are too large."""
        arriving = [self, *(each for each in self._others() if each._awaited[0] == "body")]
        if sum(each.conn.body_bytes for each in arriving) > self.most_arriving_bytes:
            largest = max(arriving, key=lambda each: each.conn.body_bytes)
            largest._break_body(
                TooManyRequests(
                    "The bodies that arrive at the moment are too large together.",
                    code="bodies_too_large",
                    retry_after_s=_RETRY_AFTER_S,
                )
            )


def http_connection(settings: Settings) -> type[HttpConnection]:
    """Returns the class of the server's connections, as uvicorn takes it."""

    class Connection(HttpConnection):
        receive_timeout_s = settings.receive_timeout_s
        most_connections = int(most_descriptors() * _CONNECTIONS)
        most_arriving_bytes = _ARRIVING_BODIES * settings.max_body_bytes

    return Connection


def accepted_at_once() -> int:
    """Returns how many connections may be accepted together, and wait for it in the system."""
    return min(_MOST_ACCEPTED, int(most_descriptors() * _ACCEPTED))
