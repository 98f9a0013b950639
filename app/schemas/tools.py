"""Function tools, in whatever dialect they are offered: their names and JSON schemas."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any

from jsonschema import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from pydantic import Field
from referencing import Registry

# OpenAI's characters and those with which tool servers put a place before a name.
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


def checked_schema(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same, if it is a JSON schema; raises ValueError."""
    if schema is None:
        return None
    if not isinstance(schema.get("$schema", ""), str):
        raise ValueError("not a JSON schema: $schema should be a string")
    try:
        error = next(_checker(validator_for(schema)).iter_errors(schema), None)
    except RecursionError as deep:
        raise ValueError("not a JSON schema that can be checked: nested too deeply") from deep
    if error is not None:
        raise ValueError(f"not a JSON schema: {error.message}")
    return schema


def validator(schema: dict[str, Any]) -> Validator:
    """What checks arguments against a schema. It fetches nothing that the schema refers to."""
    return validator_for(schema)(schema, registry=Registry())


@cache
def _checker(dialect: type[Validator]) -> Validator:
    """What checks the schemas of one of JSON Schema's drafts, as the library's `check_schema`.

    But that compares each item of a list with all others to find equal ones: hours, of a long list.
    """
    told: type[Validator] = validator_for(dialect.META_SCHEMA, default=dialect)
    quick: type[Validator] = extend(told, {"uniqueItems": _unique_items})  # type: ignore[no-untyped-call]  # its own lack
    return quick(dialect.META_SCHEMA, format_checker=told.FORMAT_CHECKER)


def _unique_items(
    _validator: Validator, wanted: bool, items: Any, _schema: Any
) -> Iterator[ValidationError]:
    if wanted and isinstance(items, list):
        different = {json.dumps(item, sort_keys=True) for item in items}
        if len(different) < len(items):
            yield ValidationError("a list has an item twice")
