"""Function tools, in whatever dialect they are offered: their names and JSON schemas."""

from typing import Annotated, Any

from jsonschema import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from pydantic import Field
from referencing import Registry

# OpenAI's characters and those with which tool servers put a place before a name.
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


def checked_schema(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same, if it is a JSON schema; raises ValueError."""
    if schema is not None:
        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message}") from error
    return schema


def validator(schema: dict[str, Any]) -> Validator:
    """What checks arguments against a schema. It fetches nothing that the schema refers to."""
    return validator_for(schema)(schema, registry=Registry())
