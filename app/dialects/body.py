"""Parses request bodies. An error in a body names the field that is wrong."""

import codecs
import json
import logging
import re
import string
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.dialects.fields import ignored_fields, quoted
from app.dialects.tool_schemas import PatternRoom
from app.errors import UNSUPPORTED, ApiError, BadRequest, BodyTooLarge, short, shown_names

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=BaseModel)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Matches every JSON escape, so that "\\\\ud800" is read as a backslash and letters. Group 1 matches
# a lone surrogate.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)

_LEAST_FILE = 1024  # bytes of a string that may be a file in base64
_BASE64 = (string.ascii_letters + string.digits + "+/=-_").encode()
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_MOST_OBJECTS = 250_000
_MOST_VALUES = 2**20 + 2**16  # token ids, and what is beside them

# Errors of these types have the refused value in their message already, or no value was sent.
_COMPLETE = {UNSUPPORTED, "value_error", "missing", "too_short", "too_long"}


def parse(body: bytes, schema: type[T]) -> tuple[T, list[str]]:
    """Returns the body as an instance of `schema`, and the names of the ignored fields.

    A byte order mark is skipped. Lone surrogates, which JavaScript makes when it cuts a text inside
    an emoji, become U+FFFD. Raises BadRequest that names the wrong field. A large body takes
    seconds.
    """
    try:
        text = _without_lone_surrogates(_utf8(body))
        value = schema.model_validate_json(text, context=PatternRoom())
    except ValidationError as error:
        raise _bad_request(error) from error
    return value, ignored_fields(value)


def remember_ignored(request: Request, names: list[str]) -> None:
    """Put the names of ignored fields into the state of the request, and into the log."""
    request.state.ignored_fields = names
    if names:
        logger.debug("ignored fields of the request: %s", shown_names(names))


def checked_size(body: bytes, most: int) -> int:
    """Returns the size of a body without the contents of its files, such as pictures.

    A file is a long string in base64. All else becomes many small objects, which take far more
    memory than the body itself. Raises BodyTooLarge if it is more than `most` bytes, or if the body
    has so many objects that nothing else could run for a second while they are made.
    """
    size = at = 0
    while size <= most:
        quote = body.find(b'"', at)
        part = body[at:] if quote < 0 else body[at:quote]
        size += len(part if len(part) < _LEAST_FILE else part.translate(None, _BASE64)) + 1
        if quote < 0:
            break
        at = quote + 1
    if size > most:
        raise BodyTooLarge(
            f"The body has more than the allowed {most} bytes beside images and other files in "
            "base64 (max_text_bytes)."
        )
    outside = _STRING.sub(b"", body)
    objects, values = outside.count(b"[") + outside.count(b"{"), outside.count(b",")
    if objects > _MOST_OBJECTS or values > _MOST_VALUES:
        raise BodyTooLarge(
            f"The body has {objects} objects and lists and {values} commas between values; at most "
            f"{_MOST_OBJECTS} and {_MOST_VALUES} are allowed."
        )
    return size


def _utf8(body: bytes) -> bytes:
    """Returns the body without a byte order mark. Raises BadRequest if it is not UTF-8."""
    encoding = json.detect_encoding(body)
    if not encoding.startswith("utf-8"):
        raise BadRequest(f"The body is {encoding[:6].upper()} text; JSON must be sent as UTF-8.")
    return body.removeprefix(codecs.BOM_UTF8)


def _without_lone_surrogates(body: bytes) -> bytes:
    if _SURROGATE.search(body) is None:
        return body
    return _ESCAPE.sub(lambda match: match[0] if match[1] is None else rb"\ufffd", body)


def _bad_request(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    path = [*first["loc"], *([context["field"]] if context.get("field") else [])]
    # Tags such as "(list)" say which form a field has. They are not part of its name.
    names = [short(str(part)) for part in path if not str(part).startswith("(")]
    field = ".".join(names) or None
    if first["type"] == "json_invalid":
        why = first["msg"].removeprefix("Invalid JSON: ")
        return BadRequest(f"The body is not valid JSON: {why}.")
    if first["type"] == "extra_forbidden":
        return BadRequest(f"Unknown field: {field}.", param=field, code="unknown_parameter")
    code = UNSUPPORTED if first["type"] == UNSUPPORTED else None
    why = first["msg"].removeprefix("Value error, ")
    if first["type"] not in _COMPLETE and ", got " not in why:
        why += f", got {_received(first['input'])}"
    tool = f" ({short(context['tool'])})" if context.get("tool") else ""
    return BadRequest(f"{field or 'The body'}{tool}: {why}.", param=field, code=code)


def _received(value: Any) -> str:
    """Returns a refused value for an error message. Lists and objects are not shown in full."""
    match value:
        case {"type": str() as kind}:
            return f"an object of type {quoted(kind)}"
        case dict():
            return "an object"
        case list():
            return "a list"
    return quoted(value)
