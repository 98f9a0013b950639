"""Tools' schemas: what is none is refused, and one that can't be applied fails the answer."""

import pytest

from app.errors import GenerationFailed
from app.gemma_format import Call
from app.routes.generation import ChatFormat, Figures, _check_calls
from app.schemas.tools import checked_schema, validator


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"required": ["a", "b", "a"]},
        {"type": ["string", "null", "string"]},
        {"pattern": "("},
        {"$schema": ["http://json-schema.org/draft-07/schema#"]},
        {"$schema": "http://json-schema.org/draft-04/schema#", "enum": [{"a": 1}, {"a": 1}]},
    ],
)
def test_what_is_no_schema_is_refused(schema):
    with pytest.raises(ValueError, match="not a JSON schema"):
        checked_schema(schema)


def test_a_schema_of_any_draft_is_taken():
    for draft in ("draft-03", "draft-04", "draft-06", "draft-07"):
        checked_schema({"$schema": f"http://json-schema.org/{draft}/schema#", "enum": [1, "1"]})
    checked_schema({"required": ["a", "b"], "enum": [{}, {}]})


def test_a_strict_schema_that_refers_to_itself_for_ever_fails_the_answer_alone():
    form = ChatFormat({"f": validator({"$ref": "#"})})
    with pytest.raises(GenerationFailed) as failed:
        _check_calls([Call("f", "{}", True)], form, Figures(1))
    assert failed.value.code == "tool_call_invalid"
