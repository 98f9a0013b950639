import json
from itertools import combinations

import pytest
from jsonschema_rs import validator_for

from app.constraint.alternatives import with_any_of
from app.constraint.compiling import compiled
from app.constraint.kinds import Constraint, JsonSchema
from app.constraint.limits import Effort, LateError
from engine.constraint.grammar import Frontier, GrammarVocabulary
from tests.app.constraint.answers import END, SIZE, TEXTS, toy_trie

_A, _B = {"const": "a"}, {"const": "b"}


def _with(**properties):
    return {"properties": properties, "required": list(properties)}


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "string"}, {"type": ["integer", "null"]}, {"type": "array"}]},
        {"oneOf": [{"const": 1}, {"enum": [2, "1", True]}]},
        {"oneOf": [{"enum": ["a", 1], "type": "string"}, {"type": "integer"}]},
        {"type": "object", "oneOf": [_with(k=_A), _with(k=_B, z={"type": "null"})]},
        {"type": "object", "required": ["k"], "oneOf": [{"properties": {"k": _A}}, _with(k=_B)]},
        {"type": "object", "oneOf": [_with(k=_with(m=_A) | {"type": "object"}), _with(k=_B)]},
        {"type": "object", "oneOf": [_with(k={}), {"properties": {"k": False}}]},
        {
            "type": "object",
            "oneOf": [_with(k={}), {"properties": {"l": {}}, "additionalProperties": False}],
        },
        {
            "$defs": {"a": {"type": "object", **_with(k=_A)}, "b": {"type": "string"}},
            "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        },
        {"type": "object", "properties": {"n": {"$ref": "#"}}, "oneOf": [_with(k=_A), _with(k=_B)]},
    ],
)
def test_alternatives_that_exclude_each_other_become_any_of(schema):
    expected = dict(schema)
    expected["anyOf"] = expected.pop("oneOf")
    assert with_any_of(schema, Effort()) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "number"}, {"type": "integer"}]},
        {"oneOf": [{"const": 1}, {"enum": [1.0, 2]}]},
        {"oneOf": [{"minimum": 1}, {"type": "string"}]},
        {"oneOf": [_with(k=_A), _with(k=_B)]},  # neither limits what is no object
        {"type": "object", "oneOf": [_with(k=_A), {"properties": {"k": _B}}, {}]},
        {"type": "object", "oneOf": [{"properties": {"k": _A}}, {"properties": {"k": _B}}]},
        # Members that are not listed are not written, but they are valid.
        {"type": "object", "oneOf": [_with(k=_A), _with(l=_B)]},
        {
            "type": "object",
            "oneOf": [
                _with(k={}),
                {"patternProperties": {"^k": {}}, "additionalProperties": False},
            ],
        },
        # The opposite of integers has no numbers, and 0.5 is valid by both.
        {"oneOf": [{"not": {"type": "integer"}}, {"type": "number"}]},
        {"oneOf": [{"type": "string"}, {"if": {"type": "integer"}, "else": {"type": "number"}}]},
        # A value that is no object is valid by each part.
        {"properties": {"k": False}, "oneOf": [{"required": ["k"]}, {"type": "null"}]},
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, _A]}}, "oneOf": [{"$ref": "#/$defs/a"}]},
        {"oneOf": [{"$ref": "https://example.org/a"}, {"type": "null"}]},
        {"oneOf": {"type": "null"}},
        {"oneOf": [{"type": "nothing"}, {"type": "null"}]},
    ],
)
def test_one_of_stays_unless_its_alternatives_are_proved_to_exclude_each_other(schema):
    assert with_any_of(schema, Effort()) == schema


def test_one_of_is_found_in_every_part_and_is_no_keyword_as_a_name():
    exclusive = {"oneOf": [{"type": "null"}, {"type": "string"}]}
    either = {"anyOf": exclusive["oneOf"]}

    def schema(part):
        return {
            "$defs": {
                "oneOf": part,
                "x": {"items": [part, {"not": part}], "additionalItems": part},
            },
            "properties": {"oneOf": {"oneOf": [part]}, "b": {"items": part, "contains": part}},
            "patternProperties": {"^oneOf": {"allOf": [part], "anyOf": [{}, part]}},
            "additionalProperties": {"if": part, "then": part, "else": part},
            "dependentSchemas": {"oneOf": {"propertyNames": part, "prefixItems": [part]}},
            "enum": [exclusive],
            "const": exclusive,
            "default": exclusive,
        }

    expected = schema(either)
    expected["properties"]["oneOf"] = {"anyOf": [either]}
    assert with_any_of(schema(exclusive), Effort()) == expected


def test_one_of_beside_any_of_holds_together_with_it():
    parts = {"anyOf": [{"maxLength": 3}, {}], "oneOf": [{"type": "null"}, {"type": "string"}]}
    assert with_any_of({"allOf": [{"minLength": 1}], **parts}, Effort()) == {
        "allOf": [{"minLength": 1}, {"anyOf": parts["oneOf"]}],
        "anyOf": parts["anyOf"],
    }


def test_the_same_values_are_valid_by_what_is_rewritten():
    parts = [
        *({"type": name} for name in ("null", "boolean", "integer", "number", "string", "object")),
        *({"type": "object", **_with(k=each)} for each in (_A, _B, {"type": "integer"}, {})),
        *(_with(k=_A), _with(k=_B), {"properties": {"k": False}}, {"properties": {"k": _A}}),
        {"properties": {"k": _A}, "additionalProperties": False},
        {"patternProperties": {"k": _A}, "additionalProperties": False},
        {"type": ["object", "null"], "properties": {"l": {}}, "additionalProperties": False},
        *(
            {"enum": [1, "a", None]},
            {"enum": [1.0, {}]},
            {"not": {"type": "integer"}},
            {"minimum": 1},
        ),
        {"if": {"type": "object"}, "then": {"required": ["l"]}, "else": {"type": "string"}},
        {"dependentRequired": {"k": ["l"]}},
        {"oneOf": [{"type": "object"}, {"required": ["k"]}]},
    ]
    bases = [
        {},
        {"type": "object"},
        {"required": ["k"]},
        {"type": ["object", "string"], "required": ["k"], "properties": {"l": {"type": "null"}}},
        {"type": "object", "properties": {"k": {"enum": ["a", 1]}}, "additionalProperties": False},
        {"patternProperties": {"^k": {"type": "string"}}, "additionalProperties": {"type": "null"}},
    ]
    members = [{}, {"k": "a"}, {"k": "b"}, {"k": 1}, {"k": None}, {"l": None}, {"l": 1}, {"m": 1}]
    values = [None, True, 1, 1.5, -2, "a", "bb", [], [1], *members]
    values += [{"k": "a", "l": None}, {"k": "b", "l": None}, {"k": 1, "l": None, "m": 2}]
    rewritten = 0
    for base in bases:
        for pair in combinations(parts, 2):
            schema = {**base, "oneOf": list(pair)}
            either = with_any_of(schema, Effort())
            if "oneOf" in either:
                continue
            rewritten += 1
            before, after = validator_for(schema), validator_for(either)
            for value in values:
                assert before.is_valid(value) == after.is_valid(value), (schema, value)
    assert rewritten > 200


def test_a_schema_of_one_of_becomes_a_grammar_where_it_is_no_automaton():
    schema = {
        "type": "object",
        "properties": {"half": {"type": "number", "multipleOf": 0.5}},
        "oneOf": [_with(k=_A), _with(k=_B)],
        "required": ["half"],
    }
    constraint = compiled(Constraint(JsonSchema(json.dumps(schema))), toy_trie(), [END])
    assert constraint.automaton is None
    vocabulary = GrammarVocabulary([TEXTS.get(token, b"") for token in range(SIZE)], [END])

    def allowed(value):
        frontier = Frontier(vocabulary, constraint.grammar)
        tokens = [*json.dumps(value).encode(), END]
        return frontier.allowed_prefix(tokens) == len(tokens)

    assert allowed({"half": 1.5, "k": "a"})
    assert allowed({"half": 1.5, "k": "b"})
    assert not allowed({"half": 1.5, "k": "c"})
    assert not allowed({"half": 1.5})


def test_proofs_end_in_time_and_nesting_is_no_error():
    many = {"oneOf": [{"oneOf": [{"type": "null"}, {"const": index}]} for index in range(300)]}
    with pytest.raises(LateError):
        with_any_of(many, Effort(most_seconds=0.0))
    deep = {"oneOf": [{"type": "null"}]}
    for _ in range(10_000):
        deep = {"not": deep}
    assert with_any_of(deep, Effort()) is deep
