"""The JSON schemas of tools: checks of the schemas, and of calls against them.

References in a client's schema are never fetched. Patterns can't run for long: most are matched in
linear time, and those that need backtracking have a limit.
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

# Without a registry, references would be fetched. An empty one fetches nothing.
_NOTHING_ELSE = Registry([])
_PATTERNS = FancyRegexOptions(backtrack_limit=100_000)  # backtracking steps: some milliseconds


def checked_schema(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the schema. Raises ValueError if it is not a JSON schema."""
    if schema is not None:
        try:
            meta.validate(schema, registry=_NOTHING_ELSE)
        except (ValueError, ReferencingError) as error:
            raise ValueError(f"it is not a JSON schema: {_why(error)}") from error
    return schema


def strict_validator(tool: Tool) -> Validator | None:
    """Returns a validator for the arguments of a strict tool's calls, or None for other tools.

    The keyword `format` is not checked; it is a hint for the model. Raises BadRequest, naming the
    tool's field, if the schema refers to something outside of it or has a bad pattern.
    """
    if not tool.strict or tool.parameters is None:
        return None
    try:
        return validator_for(
            tool.parameters, offline=True, pattern_options=_PATTERNS, validate_formats=False
        )
    except (ValueError, ReferencingError) as error:
        raise BadRequest(
            f"{tool.field}: arguments can't be checked by this schema: {_why(error)}.",
            param=tool.field,
        ) from error


def _why(error: Exception) -> str:
    """Returns the error's message in one line, without the schema that its full text shows."""
    return str(getattr(error, "message", error))
