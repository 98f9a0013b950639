"""A request's body as its schema, and what is wrong with it by the field's name."""

import asyncio
import re
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.dialects.fields import SamplingFields
from app.errors import UNSUPPORTED, ApiError, BadRequest
from app.security import key_priority

T = TypeVar("T", bound=BaseModel)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Any escape of JSON, so that "\\\\ud800" is a backslash and letters; a lone surrogate in group 1.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


async def parsed(request: Request, schema: type[T]) -> T:
    """The body as `schema`, the API key's priority where it has none of its own.

    Raises BadRequest that names the field.

    Halves of characters (lone surrogates), which JavaScript makes where it cuts a text inside an
    emoji, become U+FFFD. In a thread: large bodies take seconds, and others are served meanwhile.
    """
    body = await request.body()

    def read() -> T:
        return schema.model_validate_json(_whole_characters(body))

    try:
        found = await asyncio.to_thread(read)
    except ValidationError as error:
        raise _bad_request(error) from error
    if isinstance(found, SamplingFields) and found.priority is None:
        found.priority = key_priority(request)
    return found


def _whole_characters(body: bytes) -> bytes:
    if _SURROGATE.search(body) is None:
        return body
    return _ESCAPE.sub(lambda found: found[0] if found[1] is None else rb"\ufffd", body)


def _bad_request(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    context = first.get("ctx", {})
    path = [*first["loc"], *([context["field"]] if context.get("field") else [])]
    # "(list)" and the like tell which form a field has, and are no part of its name.
    field = ".".join(str(part) for part in path if not str(part).startswith("(")) or None
    if first["type"] == "json_invalid":
        return BadRequest(f"The body is not valid JSON: {first['msg']}")
    if first["type"] == "extra_forbidden":
        return BadRequest(f"Unknown field: {field}.", param=field, code="unknown_parameter")
    code = UNSUPPORTED if first["type"] == UNSUPPORTED else None
    why = first["msg"].removeprefix("Value error, ")
    return BadRequest(f"{field or 'The body'}: {why}.", param=field, code=code)
