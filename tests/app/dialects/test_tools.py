"""Schemas of strict tools: JSON schemas of any draft are accepted, anything else is refused."""

import pytest

from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.tool_schemas import MOST_PATTERN, MOST_PATTERNS, PatternRoom, check_schema


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
        check_schema(schema, PatternRoom())


def test_a_schema_of_any_draft_is_accepted():
    for draft in ("draft-04", "draft-06", "draft-07"):
        check_schema(
            {"$schema": f"http://json-schema.org/{draft}/schema#", "enum": [1, "1"]}, PatternRoom()
        )
    check_schema({"required": ["a", "b"], "enum": [{}, {}]}, PatternRoom())


@pytest.mark.parametrize(
    "keyword", ["unevaluatedProperties", "unevaluatedItems", "additionalProperties"]
)
def test_references_that_double_at_each_step_are_checked_without_following_all_paths(keyword):
    def twice(name):
        return {"allOf": [{"$ref": f"#/$defs/{name}"}, {"$ref": f"#/$defs/{name}"}], keyword: False}

    definitions = {str(step): twice(step + 1) for step in range(60)} | {"60": {"type": "object"}}
    check_schema({**twice(0), "$defs": definitions}, PatternRoom())
    del definitions["60"]
    with pytest.raises(ValueError, match="can't be checked"):
        check_schema({**twice(0), "$defs": definitions}, PatternRoom())


@pytest.mark.parametrize("where", ["pattern", "patternProperties", "unevaluatedProperties"])
@pytest.mark.parametrize("pattern", ["(", r"\p{Nothing}", r"\p{L}{200}", "((a{100}){100}){100}"])
def test_a_pattern_that_is_wrong_or_too_large_is_refused_wherever_it_is(where, pattern):
    schema = {
        "pattern": {"pattern": pattern},
        "patternProperties": {"patternProperties": {pattern: True}},
        "unevaluatedProperties": {"unevaluatedProperties": {"pattern": pattern}},
    }[where]
    with pytest.raises(ValueError, match="is not a regular expression, or is too large"):
        check_schema({"properties": {"a": schema}}, PatternRoom())


def test_patterns_within_the_limits_and_data_that_looks_like_one_are_accepted():
    schema = {
        "properties": {
            "pattern": {"pattern": r"^[\p{L}\s]{1,15}$", "default": {"pattern": "("}},
            "date": {"pattern": r"^\d{4}-\d{2}-\d{2}$", "enum": [{"pattern": "("}]},
        },
        "patternProperties": {"^x-": {"$ref": "#/properties/date"}},
    }
    check_schema(schema, PatternRoom())


def test_the_strict_tools_of_a_request_share_the_room_for_patterns():
    def request(tools):
        schemas = [{"pattern": f"{index:x>{MOST_PATTERN}}"} for index in range(tools)]
        functions = [
            {"name": f"f{index}", "strict": True, "parameters": schema}
            for index, schema in enumerate(schemas)
        ]
        return {
            "messages": [{"role": "user", "content": "x"}],
            "tools": [{"type": "function", "function": function} for function in functions],
        }

    most = MOST_PATTERNS // MOST_PATTERN
    ChatCompletionRequest.model_validate(request(most), context=PatternRoom())
    with pytest.raises(ValueError, match=f"more than {MOST_PATTERNS} characters together"):
        ChatCompletionRequest.model_validate(request(most + 1), context=PatternRoom())
    with pytest.raises(ValueError, match=f"at most {MOST_PATTERN} are allowed"):
        check_schema({"pattern": "x" * (MOST_PATTERN + 1)}, PatternRoom())
