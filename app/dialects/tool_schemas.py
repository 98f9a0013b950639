"""Checks of the JSON schemas of strict tools. A reference in a client's schema is never fetched."""

from typing import Any

from jsonschema_rs import ReferencingError, Registry, meta, validator_for

# Without a registry, references would be fetched. An empty one fetches nothing.
_NOTHING_ELSE = Registry([])


def check_schema(schema: dict[str, Any]) -> None:
    """Raises ValueError if this is not a JSON schema by which arguments could be checked.

    It is none if it refers to something outside of it or has a bad pattern.
    """
    try:
        meta.validate(schema, registry=_NOTHING_ELSE)
    except (ValueError, ReferencingError) as error:
        raise ValueError(f"it is not a JSON schema: {_why(error)}") from error
    try:
        validator_for(schema, offline=True, validate_formats=False)
    except (ValueError, ReferencingError) as error:
        raise ValueError(f"arguments can't be checked by this schema: {_why(error)}") from error


def _why(error: Exception) -> str:
    """Returns the error's message in one line, without the schema that its full text shows."""
    return str(getattr(error, "message", error))
