"""Checks of the JSON schemas of strict tools. A reference in a client's schema is never fetched.

A check takes time and memory in proportion to the schema's text. Two things would make it take
more: `unevaluatedProperties` and `unevaluatedItems`, for which the library follows every path of
references (2^n paths through n definitions that refer to the next one twice), and patterns, since
`\\p{L}{200}` stands for two megabytes. So the former are left out of what is compiled, and the
latter are compiled one by one, each within a limit.
"""

from collections.abc import Iterator
from typing import Any

from jsonschema_rs import FancyRegexOptions, ReferencingError, Registry, meta, validator_for

MOST_PATTERN = 1_000  # characters of one pattern
MOST_PATTERNS = 10_000  # characters of all patterns in a request's schemas
LEAST_PATTERN = 50  # characters that a pattern counts for at least, as a short one may take 10 ms

# Without a registry, references would be fetched. An empty one fetches nothing.
_NOTHING_ELSE = Registry([])
_PATTERN_OPTIONS = FancyRegexOptions(size_limit=2**20)  # bytes of one compiled pattern
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")
_BY_NAME = ("properties", "$defs", "definitions", "dependentSchemas", "dependencies")
_DATA = ("enum", "const", "default", "examples")  # keywords whose values are no schemas


class PatternRoom:
    """How many characters the patterns in a request's schemas may still have."""

    def __init__(self) -> None:
        self._left = MOST_PATTERNS

    def take(self, pattern: str) -> None:
        """Raises ValueError if the pattern is too long, alone or with those before it."""
        if len(pattern) > MOST_PATTERN:
            raise ValueError(
                f"it has a pattern of {len(pattern)} characters; at most {MOST_PATTERN} are allowed"
            )
        self._left -= max(len(pattern), LEAST_PATTERN)
        if self._left < 0:
            raise ValueError(
                f"the patterns of the request's strict tools have more than {MOST_PATTERNS} "
                f"characters together, where each counts for at least {LEAST_PATTERN}"
            )


def check_schema(schema: dict[str, Any], room: PatternRoom) -> None:
    """Raises ValueError if this is not a JSON schema by which arguments could be checked.

    It is none if it refers to something outside of it, or has a pattern that is wrong or too large.
    """
    try:
        meta.validate(schema, registry=_NOTHING_ELSE)
    except (ValueError, ReferencingError) as error:
        raise ValueError(f"it is not a JSON schema: {_why(error)}") from error
    for pattern in dict.fromkeys(_patterns(schema)):
        room.take(pattern)
        try:
            validator_for({"pattern": pattern}, pattern_options=_PATTERN_OPTIONS)
        except ValueError as error:
            raise ValueError(
                f"arguments can't be checked by this schema: the pattern {pattern!r} is not a "
                "regular expression, or is too large"
            ) from error
    try:
        validator_for(_compiled_part(schema), offline=True, validate_formats=False)
    except (ValueError, ReferencingError) as error:
        raise ValueError(f"arguments can't be checked by this schema: {_why(error)}") from error


def _patterns(value: Any) -> Iterator[str]:
    """Yields the patterns of a schema and of all schemas in it."""
    if isinstance(value, list):
        for each in value:
            yield from _patterns(each)
    if not isinstance(value, dict):
        return
    for key, each in value.items():
        if key == "pattern" and isinstance(each, str):
            yield each
        elif key == "patternProperties" and isinstance(each, dict):
            yield from each
            yield from _patterns(list(each.values()))
        elif key in _BY_NAME and isinstance(each, dict):
            yield from _patterns(list(each.values()))
        elif key not in _DATA:
            yield from _patterns(each)


def _compiled_part(value: Any) -> Any:
    """Returns the schema without patterns, and with every schema in it as that of a property.

    So the references of all of them are looked up, and none is followed more than once.
    """
    if isinstance(value, list):
        return [_compiled_part(each) for each in value]
    if not isinstance(value, dict):
        return value
    part: dict[str, Any] = {}
    moved: dict[str, Any] = {}
    for key, each in value.items():
        if key == "pattern" and isinstance(each, str):
            continue
        if key == "patternProperties" and isinstance(each, dict):
            moved |= {f"{key} {name}": _compiled_part(schema) for name, schema in each.items()}
        elif key in _UNEVALUATED:
            moved[key] = _compiled_part(each)
        elif key in _BY_NAME and isinstance(each, dict):
            part[key] = {name: _compiled_part(schema) for name, schema in each.items()}
        else:
            part[key] = each if key in _DATA else _compiled_part(each)
    if moved:
        part["properties"] = {**moved, **part.get("properties", {})}
    return part


def _why(error: Exception) -> str:
    """Returns the error's message in one line, without the schema that its full text shows."""
    return str(getattr(error, "message", error))
