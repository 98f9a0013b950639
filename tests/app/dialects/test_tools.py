"""Schemas of strict tools: JSON schemas of any draft are accepted, anything else is refused."""

import pytest

from app.dialects.tool_schemas import check_schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"required": ["a", "b", "a"]},
        {"type": ["string", "null", "string"]},
        {"$schema": ["http://json-schema.org/draft-07/schema#"]},
    ],
)
def test_a_value_that_is_not_a_schema_is_refused(schema):
    with pytest.raises(ValueError, match="not a JSON schema"):
        check_schema(schema)


def test_a_schema_of_any_draft_is_accepted():
    for draft in ("draft-04", "draft-06", "draft-07"):
        check_schema({"$schema": f"http://json-schema.org/{draft}/schema#", "enum": [1, "1"]})
    check_schema({"required": ["a", "b"], "enum": [{}, {}]})
