"""Middleware around every endpoint: target, id, metrics, ignored fields, unexpected errors."""

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.arrival import arrived
from app.errors import (
    ApiError,
    NotReady,
    WebSocketRefused,
    WrongRequest,
    dialect,
    error_body,
    shown_names,
    stream_end,
)
from app.logs import request_id, route
from app.metrics import Metrics

logger = logging.getLogger(__name__)

_SHUTTING_DOWN = NotReady("The server is shutting down.")
_UNEXPECTED = ApiError("An unexpected error happened; the server's log has its traceback.")
_REQUEST_ID = b"x-request-id"
_ANTHROPIC_REQUEST_ID = b"request-id"  # where Anthropic's SDKs look for it
_IGNORED = b"x-easel-ignored"
_ACCEPTABLE_ID = re.compile(rb"[\w.:/+=-]{1,128}")
_ORIGIN = re.compile("https?://[^/]*", re.IGNORECASE)
_SLASHES = re.compile("/{2,}")

# The headers that responses get here and from errors. Pages of other origins may read them.
OWN_HEADERS = (
    "x-request-id",
    "request-id",
    "x-easel-ignored",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "www-authenticate",
    "accept-encoding",
    "allow",
)


class RequestTarget:
    """Reads a request's target as it is meant, so that a client's base URL may be imprecise.

    The target may be a whole URL, as proxies get it. Several slashes in a row are one, and a slash
    at the end is none. HEAD is GET: the server below sends no body for it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = meant_path(scope["path"])
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            scope = {**scope, "path": path, "method": method}
        await self._app(scope, receive, send)


def meant_path(path: str) -> str:
    """Returns a request's path without an origin before it and without needless slashes."""
    origin = _ORIGIN.match(path)
    path = path if origin is None else path[origin.end() :]
    return _SLASHES.sub("/", path).rstrip("/") or "/"


class RequestIds:
    """Adds a request id to every response, the client's own or a new one, in both headers.

    Notes when the request arrived.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(_REQUEST_ID, b"")
        name = given if _ACCEPTABLE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}".encode()
        request_id.set(name.decode())
        arrived.set(asyncio.get_running_loop().time())
        route.set(scope["path"])

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                ids = [(_REQUEST_ID, name), (_ANTHROPIC_REQUEST_ID, name)]
                message["headers"] = [*message.get("headers", []), *ids]
            await send(message)

        await self._app(scope, receive, send_with_id)


class IgnoredFields:
    """Adds a header that names the fields of the request's body that had no effect."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def send_with_names(message: Message) -> None:
            names = state.get("ignored_fields")
            if names and message["type"] == "http.response.start":
                header = (_IGNORED, shown_names(names).encode())
                message["headers"] = [*message.get("headers", []), header]
            await send(message)

        await self._app(scope, receive, send_with_names)


class RequestMetrics:
    """Measures how long requests take, and counts those that get an error instead.

    A request whose client leaves is neither: `easel_requests_total` counts its answers.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        state = scope.setdefault("state", {})
        succeeded = ended = False

        async def watched(message: Message) -> None:
            nonlocal succeeded, ended
            await send(message)
            if message["type"] == "http.response.start":
                succeeded = message["status"] < 400
            else:
                ended = not message.get("more_body", False)

        await self._app(scope, receive, watched)
        error: ApiError | None = state.get("error")
        if error is not None:
            self._metrics.error_responses.labels(error.status, error.code or error.type).inc()
        elif succeeded and ended and "route" in scope:
            seconds = time.monotonic() - started
            self._metrics.request_time.labels(scope["route"].path).observe(seconds)


class Envelopes:
    """Gives errors of Starlette's own middleware, which are plain text, the envelope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None
        text = b""

        async def enveloped(message: Message) -> None:
            nonlocal start, text
            if message["type"] == "http.response.start" and _is_plain_error(message):
                start = message
            elif start is None:
                await send(message)
            else:
                text += message.get("body", b"")
                if not message.get("more_body", False):
                    error = WrongRequest(f"{text.decode().removesuffix('.')}.")
                    error.status = start["status"]
                    answer = error_response(Request(scope), error)
                    kept = [h for h in start["headers"] if not h[0].startswith(b"content-")]
                    answer.raw_headers += kept
                    await answer(scope, receive, send)

        await self._app(scope, receive, enveloped)


def _is_plain_error(start: Message) -> bool:
    kind = dict(start.get("headers", [])).get(b"content-type", b"")
    return bool(start["status"] >= 400 and kind.startswith(b"text/plain"))


class HttpOnly:
    """Refuses WebSocket connections. Other upgrades, such as HTTP/2, are optional and ignored."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        offered = Headers(scope=scope).get("upgrade", "") if scope["type"] == "http" else ""
        if offered.lower() == "websocket":
            raise WebSocketRefused("WebSockets are not supported; use HTTP.")
        await self._app(scope, receive, send)


class UnexpectedErrors:
    """Turns exceptions into errors of the request's dialect, as a response or inside the stream.

    Unexpected exceptions are logged. A client that leaves while it sends its body is not an error.
    When a shutdown's grace period is over, uvicorn cancels the requests that still run. Their
    clients get an error too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = streaming = False

        async def watched(message: Message) -> None:
            nonlocal started, streaming
            started = True
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                streaming = kind.startswith(b"text/event-stream")
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            return
        except (Exception, asyncio.CancelledError) as error:
            if scope["type"] != "http":
                raise
            answered: ApiError
            match error:
                case ApiError():
                    answered = error
                case asyncio.CancelledError():
                    answered = _SHUTTING_DOWN
                case _:
                    logger.exception("unexpected error")
                    answered = _UNEXPECTED
            request = Request(scope)
            if not started:
                answer = error_response(request, answered)
                await answer(scope, receive, send)
            elif streaming:
                spoken = dialect(request.url.path, request.headers)
                last = stream_end(answered, spoken, request_id.get())
                await send({"type": "http.response.body", "body": last.encode()})
            elif answered is not _SHUTTING_DOWN:
                raise


def error_response(request: Request, error: ApiError) -> JSONResponse:
    """Returns the error in the envelope of the dialect that the request speaks."""
    request.state.error = error
    body = error_body(error, dialect(request.url.path, request.headers), request_id.get())
    return JSONResponse(body, status_code=error.status, headers=error.headers)
