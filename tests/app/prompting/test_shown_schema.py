"""Schemas as Gemma's templates can show them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.prompting.shown_schema import SchemaTooLargeError, shown_schema

KEYWORDS = {"type", "description", "enum", "items", "properties", "required", "nullable"}
TYPES = {"string", "number", "integer", "boolean", "array", "object"}


def parameter(schema, **definitions):
    """Returns how one parameter is shown."""
    whole = {"type": "object", "properties": {"p": schema}, "$defs": definitions}
    return shown_schema(whole)["properties"]["p"]


@pytest.mark.parametrize("schema", [None, {}, {"properties": None, "required": None}, {"type": []}])
def test_a_tool_without_parameters_has_an_object_without_fields(schema):
    assert shown_schema(schema) == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        ({"type": ["string", "null"]}, {"type": "string", "nullable": True}),
        ({"type": "STRING"}, {"type": "string"}),
        ({"type": "float"}, {"type": "number"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"type": "integer", "nullable": True}),
        ({"oneOf": [{"const": "a"}, {"const": "b"}]}, {"type": "string", "enum": ["a", "b"]}),
        ({"enum": ["a", None]}, {"type": "string", "enum": ["a"], "nullable": True}),
        ({"const": "a"}, {"type": "string", "enum": ["a"]}),
        (
            {"type": ["string", "integer"], "description": "Which."},
            {"type": "string", "description": "Which. May also be of type integer."},
        ),
        (
            {"enum": [1, 2]},
            {"type": "integer", "enum": [1, 2], "description": "One of: 1, 2."},
        ),
        (True, {"type": "string"}),
        ({}, {"type": "string"}),
        ({"type": "any"}, {"type": "string"}),
        ({"minimum": 0}, {"type": "number"}),
        ({"default": True}, {"type": "boolean"}),
        ({"type": "array"}, {"type": "array"}),
        ({"items": {"type": "integer"}}, {"type": "array", "items": {"type": "integer"}}),
        ({"prefixItems": [{"type": "integer"}]}, {"type": "array", "items": {"type": "integer"}}),
        ({"additionalProperties": {"type": "string"}}, {"type": "object"}),
        ({"type": "string", "pattern": "a", "exclusiveMinimum": True}, {"type": "string"}),
    ],
)
def test_a_parameter_has_one_type_and_only_words_that_gemma_knows(schema, shown):
    assert parameter(schema) == shown


def test_references_are_looked_up():
    place = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    assert parameter({"$ref": "#/$defs/place"}, place=place) == place
    described = {"$ref": "#/$defs/place", "description": "Where."}
    assert parameter(described, place=place) == {**place, "description": "Where."}
    assert parameter({"allOf": [{"$ref": "#/$defs/place"}]}, place=place) == place


@pytest.mark.parametrize("reference", ["#/$defs/missing", "https://example.com/s", "#/a/b/0", "#x"])
def test_a_reference_that_leads_nowhere_is_shown_without_its_fields(reference):
    assert parameter({"$ref": reference}) == {"type": "string"}


def test_a_schema_inside_itself_is_shown_once():
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    assert parameter({"$ref": "#/$defs/node"}, node=node) == {
        "type": "object",
        "properties": {"next": {"type": "object"}},
    }
    assert parameter({"$ref": "#/$defs/a"}, a={"$ref": "#/$defs/a"}) == {"type": "string"}


def test_alternatives_that_are_objects_have_the_fields_of_all_and_require_those_of_each():
    either = [
        {
            "type": "object",
            "properties": {"a": {}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
        {"type": "object", "properties": {"a": {}, "c": {}}, "required": ["a"]},
    ]
    shown = parameter({"anyOf": either})
    assert shown["required"] == ["a"]
    assert {name: each["type"] for name, each in shown["properties"].items()} == {
        "a": "string",
        "b": "integer",
        "c": "string",
    }


def test_a_required_name_without_a_parameter_is_left_out():
    schema = {"properties": {"a": {"type": "string"}}, "required": ["a", "b", 3]}
    assert shown_schema(schema)["required"] == ["a"]


def test_a_schema_that_doubles_with_each_reference_is_refused():
    both = {"a": {"$ref": "#/$defs/{}"}, "b": {"$ref": "#/$defs/{}"}}
    definitions = {
        str(level): {
            "properties": {name: {"$ref": f"#/$defs/{level + 1}"} for name in both},
        }
        for level in range(60)
    }
    with pytest.raises(SchemaTooLargeError):
        parameter({"$ref": "#/$defs/0"}, **definitions)


MANY = {f"p{index}": True for index in range(20_000)}
REFERENCE = {"$ref": "#/$defs/large"}


@pytest.mark.parametrize(
    "large",
    [
        {"description": "x" * 2**20},
        {"enum": list(MANY)},
        {"properties": MANY},
        {"required": list(MANY)},
    ],
    ids=["description", "enum", "properties", "required"],
)
@pytest.mark.parametrize("often", ["properties", "allOf", "anyOf"])
def test_a_large_schema_that_is_referred_to_often_is_refused(large, often):
    several = [REFERENCE] * 1000
    schema = {often: dict(zip(MANY, several, strict=False)) if often == "properties" else several}
    with pytest.raises(SchemaTooLargeError):
        shown_schema({**schema, "$defs": {"large": large}})


def test_a_deep_enum_that_is_referred_to_often_is_refused():
    large = {"enum": [[[*range(20_000)]]]}
    with pytest.raises(SchemaTooLargeError):
        shown_schema({"properties": dict.fromkeys(MANY, REFERENCE), "$defs": {"large": large}})


def test_a_chain_of_references_to_a_large_schema_is_refused():
    chain = {str(step): {"$ref": f"#/$defs/{step + 1}"} for step in range(500)}
    with pytest.raises(SchemaTooLargeError):
        shown_schema({"$ref": "#/$defs/0", "$defs": {**chain, "500": {"properties": MANY}}})


def test_long_lists_of_required_names_are_merged():
    a, b = ([f"{letter}{n}" for n in range(45_000)] for letter in "ab")
    properties = dict.fromkeys(("a1", "b1", "a2"), True)
    both = {"properties": properties, "allOf": [{"required": a}, {"required": b}]}
    assert shown_schema(both)["required"] == ["a1", "a2", "b1"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from(["string", "null", "a", "#/$defs/d"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *KEYWORDS,
                    "anyOf",
                    "oneOf",
                    "allOf",
                    "$ref",
                    "const",
                    "default",
                    "prefixItems",
                    "$defs",
                    "d",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def assert_is_shown_form(schema):
    assert set(schema) <= KEYWORDS
    assert schema["type"] in TYPES
    assert isinstance(schema.get("description", ""), str)
    for each in schema.get("properties", {}).values():
        assert_is_shown_form(each)
    if "items" in schema:
        assert_is_shown_form(schema["items"])
    assert set(schema.get("required", ())) <= set(schema.get("properties", ()))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(json_values)
def test_any_json_is_shown_as_far_as_it_goes(value):
    assert_is_shown_form(shown_schema({"properties": {"p": value}, "$defs": {"d": value}}))
