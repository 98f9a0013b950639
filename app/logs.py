"""The log: its two formats, the request ids in it, and one line for each answer.

Everything goes to stderr, including uvicorn's lines and the worker's, as text or as one JSON object
per line. Prompts and answers are never logged at any level. Libraries may log what they send,
so their level is never below info.
"""

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="-")
route: ContextVar[str] = ContextVar("route", default="-")

Field = str | int | float
LogFormat = Literal["text", "json"]

_OURS = ("app", "engine")
_OF_UVICORN = ("Unsupported upgrade", "No supported WebSocket", "Invalid HTTP request")
_answers = logging.getLogger("app.answers")


def configure_logs(level: str, log_format: LogFormat) -> None:
    """Send all loggers to stderr. At level debug only Easel's own loggers log more than info."""
    handler = _StderrHandler()
    handler.addFilter(_with_request_id)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    least = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(least, logging.INFO), handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(least)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_not_about_requests)
    logging.captureWarnings(True)
    if log_format == "json":
        sys.excepthook = lambda *error: logging.critical(
            "unexpected error, exiting", exc_info=error
        )


def log_answer(figures: Mapping[str, Field]) -> None:
    """Log the one line about an answer that has ended. It has numbers and names, but no text."""
    rounded = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    _answers.info("answer", extra={"fields": {"route": route.get(), **rounded}})


class TextFormatter(logging.Formatter):
    """Formats a line for people: the message, then the fields as key=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        fields = _fields(record)
        return " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in fields.items())])


class JsonFormatter(logging.Formatter):
    """Formats a line for machines: one JSON object with the fields beside `message`."""

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


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment, not to what it was at the start.

    While a line of progress is on the terminal, `sys.stderr` prints above that line.
    """

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _fields(record: logging.LogRecord) -> dict[str, Field]:
    fields: dict[str, Field] = getattr(record, "fields", {})
    return fields


def _not_about_requests(record: logging.LogRecord) -> bool:
    """Drops what uvicorn logs at offers of an upgrade, as from Java's clients, and at bad requests.

    Easel logs why it refused a request, and its id.
    """
    return not record.getMessage().startswith(_OF_UVICORN)


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
