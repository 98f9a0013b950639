"""The log's format and each request's id. Prompts and answers are never logged."""

import logging
import re
import uuid
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

request_id: ContextVar[str] = ContextVar("request_id", default="-")

_HEADER = b"x-request-id"
_ANTHROPIC_HEADER = b"request-id"  # where Anthropic's SDKs look for it
_ACCEPTABLE = re.compile(rb"[\w.:/+=-]{1,128}")


def configure_logs(level: str) -> None:
    """Everything to stderr, one line an event, uvicorn's lines among them."""
    handler = logging.StreamHandler()
    handler.addFilter(_with_request_id)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s [%(request_id)s] %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


class RequestIds:
    """Middleware: the client's `x-request-id` or a fresh one, on every answer, by both names."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(_HEADER, b"")
        name = given if _ACCEPTABLE.fullmatch(given) else f"req-{uuid.uuid4().hex}".encode()
        request_id.set(name.decode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                ids = [(_HEADER, name), (_ANTHROPIC_HEADER, name)]
                message["headers"] = [*message.get("headers", []), *ids]
            await send(message)

        await self._app(scope, receive, send_with_id)
