"""Parses request bodies. An error in a body names the field that is wrong."""

import asyncio
import codecs
import json
import logging
import re
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.dialects.fields import SamplingFields, ignored_fields, quoted
from app.dialects.tool_schemas import PatternRoom
from app.errors import UNSUPPORTED, ApiError, BadRequest
from app.security import key_priority

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

# Errors of these types have the refused value in their message already, or no value was sent.
_COMPLETE = {UNSUPPORTED, "value_error", "missing", "too_short", "too_long"}


async def parsed(request: Request, schema: type[T]) -> T:
    """Returns the body as an instance of `schema`. Raises BadRequest that names the wrong field.

    The names of ignored fields go into the state of the request, and into the log.

    A request without a priority gets that of its API key. A byte order mark is skipped. Lone
    surrogates, which JavaScript makes when it cuts a text inside an emoji, become U+FFFD. The body
    is parsed in a thread, because a large one takes seconds and other requests are served
    meanwhile.
    """
    body = await request.body()

    def parse() -> T:
        try:
            text = _without_lone_surrogates(_utf8(body))
            return schema.model_validate_json(text, context=PatternRoom())
        except ValidationError as error:
            raise _bad_request(error) from error

    value = await asyncio.to_thread(parse)
    request.state.ignored_fields = ignored_fields(value)
    if request.state.ignored_fields:
        logger.debug("ignored fields of the request: %s", ", ".join(request.state.ignored_fields))
    if isinstance(value, SamplingFields) and value.priority is None:
        value.priority = key_priority(request)
    return value


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
    field = ".".join(str(part) for part in path if not str(part).startswith("(")) or None
    if first["type"] == "json_invalid":
        why = first["msg"].removeprefix("Invalid JSON: ")
        return BadRequest(f"The body is not valid JSON: {why}.")
    if first["type"] == "extra_forbidden":
        return BadRequest(f"Unknown field: {field}.", param=field, code="unknown_parameter")
    code = UNSUPPORTED if first["type"] == UNSUPPORTED else None
    why = first["msg"].removeprefix("Value error, ")
    if first["type"] not in _COMPLETE and ", got " not in why:
        why += f", got {_received(first['input'])}"
    return BadRequest(f"{field or 'The body'}: {why}.", param=field, code=code)


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
