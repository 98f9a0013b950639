"""The log: its two forms, each request's id, a line for each answer.

Everything goes to stderr, uvicorn's lines and the worker's among it: as text, or each line one
JSON object. Prompts and answers are never logged, whatever the level: libraries, which log what
they send, are kept at info.
"""

import json
import logging
import re
import sys
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

request_id: ContextVar[str] = ContextVar("request_id", default="-")
route: ContextVar[str] = ContextVar("route", default="-")

Field = str | int | float
LogFormat = Literal["text", "json"]

_HEADER = b"x-request-id"
_ANTHROPIC_HEADER = b"request-id"  # where Anthropic's SDKs look for it
_ACCEPTABLE = re.compile(rb"[\w.:/+=-]{1,128}")
_OURS = ("app", "engine")
_answers = logging.getLogger("app.answers")


def configure_logs(level: str, form: LogFormat) -> None:
    """Everything to stderr, one line an event. At debug only Easel's own loggers say more."""
    handler = logging.StreamHandler()
    handler.addFilter(_with_request_id)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    least = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(least, logging.INFO), handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(least)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    if form == "json":
        sys.excepthook = lambda *error: logging.critical("the server ends", exc_info=error)


def log_answer(figures: Mapping[str, Field]) -> None:
    """The one line of an answer that has ended, however it did: numbers and names, no text."""
    rounded = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    _answers.info("answer", extra={"fields": {"route": route.get(), **rounded}})


class TextFormatter(logging.Formatter):
    """For people: the message, then the fields as key=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        fields = _fields(record)
        return " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in fields.items())])


class JsonFormatter(logging.Formatter):
    """For machines: one object a line, the fields beside `message`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _fields(record: logging.LogRecord) -> dict[str, Field]:
    fields: dict[str, Field] = getattr(record, "fields", {})
    return fields


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
        route.set(scope["path"])

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                ids = [(_HEADER, name), (_ANTHROPIC_HEADER, name)]
                message["headers"] = [*message.get("headers", []), *ids]
            await send(message)

        await self._app(scope, receive, send_with_id)
