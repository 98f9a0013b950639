"""Middleware around every endpoint: request ids, ignored fields, body limit, unexpected errors."""

import asyncio
import logging
import re
import uuid

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError, BodyTooLarge, NotReady, dialect, error_body, stream_end
from app.logs import request_id, route

logger = logging.getLogger(__name__)

_SHUTTING_DOWN = NotReady("The server is shutting down.")
_UNEXPECTED = ApiError("An unexpected error happened; the server's log has its traceback.")
_REQUEST_ID = b"x-request-id"
_ANTHROPIC_REQUEST_ID = b"request-id"  # where Anthropic's SDKs look for it
_IGNORED = b"x-easel-ignored"
_UNSAFE = re.compile(r"[^\w.\[\]-]", re.ASCII)  # characters of a name that a header must not have
_NAME_LENGTH = 64
_NAMES_SHOWN = 20
_ACCEPTABLE_ID = re.compile(rb"[\w.:/+=-]{1,128}")


class RequestIds:
    """Adds a request id to every response, the client's own or a new one, in both headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(_REQUEST_ID, b"")
        name = given if _ACCEPTABLE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}".encode()
        request_id.set(name.decode())
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
                shown = [_UNSAFE.sub("?", name[:_NAME_LENGTH]) for name in names[:_NAMES_SHOWN]]
                more = [f"{len(names) - _NAMES_SHOWN} more"] if len(names) > _NAMES_SHOWN else []
                header = (_IGNORED, ", ".join([*shown, *more]).encode())
                message["headers"] = [*message.get("headers", []), header]
            await send(message)

        await self._app(scope, receive, send_with_names)


class BodyLimit:
    """Refuses a body over the limit, by its Content-Length or as soon as too much has arrived."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        received = int(announced) if announced.isdigit() else 0
        self._check(received)
        received = 0

        async def limited() -> dict[str, object]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            self._check(received)
            return dict(message)

        await self._app(scope, limited, send)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise BodyTooLarge(
                f"The body is larger than the allowed {self._most} bytes (max_body_bytes)."
            )


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
    body = error_body(error, dialect(request.url.path, request.headers), request_id.get())
    return JSONResponse(body, status_code=error.status, headers=error.headers)
