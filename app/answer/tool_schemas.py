"""The JSON schemas of tools: whether they are schemas, and whether a call satisfies one.

Nothing that a client's schema refers to is fetched, and no pattern runs longer than a moment. Most
patterns are matched in linear time; those that go back in the text have a limit.
"""

from typing import Any

from jsonschema_rs import (
    FancyRegexOptions,
    ReferencingError,
    Registry,
    Validator,
    meta,
    validator_for,
)

from app.errors import BadRequest
from app.prompting.conversation import Tool

_NOTHING_ELSE = Registry(
    []
)  # an empty registry fetches nothing; without one, references are fetched
_PATTERNS = FancyRegexOptions(backtrack_limit=100_000)  # steps back in the text: some milliseconds


def checked_schema(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the schema. Raises ValueError if it is not a JSON schema."""
    if schema is not None:
        try:
            meta.validate(schema, registry=_NOTHING_ELSE)
        except (ValueError, ReferencingError) as error:
            raise ValueError(f"not a JSON schema: {_why(error)}") from error
    return schema


def strict_validator(tool: Tool) -> Validator | None:
    """Returns what checks the arguments of a strict tool's calls, or None for any other tool.

    The keyword `format` is not checked; it only tells the model something. Raises BadRequest,
    naming the tool's field, if the schema refers to something outside of it or has a bad pattern.
    """
    if not tool.strict or tool.parameters is None:
        return None
    try:
        return validator_for(
            tool.parameters, offline=True, pattern_options=_PATTERNS, validate_formats=False
        )
    except (ValueError, ReferencingError) as error:
        raise BadRequest(
            f"{tool.field}: can't be checked: {_why(error)}.", param=tool.field
        ) from error


def _why(error: Exception) -> str:
    """Returns the error in one line. Its full text would show the whole schema as well."""
    return str(getattr(error, "message", error))
