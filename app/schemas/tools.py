"""Function tools, in whatever dialect they are offered: their names and JSON schemas.

Whatever a client's schema says, nothing that it refers to is fetched, and no pattern runs longer
than a moment: most are matched in linear time, and what goes back in the text has a limit.
"""

from typing import Annotated, Any

from jsonschema_rs import (
    FancyRegexOptions,
    ReferencingError,
    Registry,
    Validator,
    meta,
    validator_for,
)
from pydantic import AfterValidator, Field

from app.errors import BadRequest
from app.schemas.common import unsupported

# OpenAI's characters and those with which tool servers put a place before a name.
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]

_NOTHING_ELSE = Registry([])  # which fetches nothing, unlike no registry
_PATTERNS = FancyRegexOptions(backtrack_limit=100_000)  # steps back, some milliseconds


def checked_schema(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same, if it is a JSON schema; raises ValueError."""
    if schema is not None:
        try:
            meta.validate(schema, registry=_NOTHING_ELSE)
        except (ValueError, ReferencingError) as error:
            raise ValueError(f"not a JSON schema: {_why(error)}") from error
    return schema


def strict_validator(
    strict: bool | None, schema: dict[str, Any] | None, *, param: str
) -> Validator | None:
    """What checks a strict tool's arguments; None for a tool that is not. Formats say something to
    the model alone.

    Raises BadRequest, which blames the request's field `param`, if the schema refers to what is not
    in it or has a pattern that is none.
    """
    if not strict or schema is None:
        return None
    try:
        return validator_for(
            schema, offline=True, pattern_options=_PATTERNS, validate_formats=False
        )
    except (ValueError, ReferencingError) as error:
        raise BadRequest(f"{param}: can't be checked: {_why(error)}.", param=param) from error


def _kept_choice(value: Any) -> Any:
    if value not in (None, "none", "auto"):
        raise unsupported("", 'not supported; allowed: null, "none", "auto"')
    return value


ToolChoice = Annotated[Any, AfterValidator(_kept_choice)]  # OpenAI's, as far as it can be kept


def _why(error: Exception) -> str:
    """In a line: as a string such an error shows the whole schema too."""
    return str(getattr(error, "message", error))
