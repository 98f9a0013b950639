import json
import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema_rs import validator_for

from app.constraint.compiling import compiled
from app.constraint.formats import PATTERNS
from app.constraint.kinds import Constraint, JsonObject, JsonSchema
from app.constraint.limits import ConstraintError
from app.constraint.values import same
from engine.constraint.automaton import Automaton
from tests.app.constraint.answers import END, allows, an_answer, text_of, tokens_of, toy_trie
from tests.app.constraint.schemas import schemas

_TRIE = toy_trie()


def _automaton(schema: object) -> Automaton:
    automaton = compiled(Constraint(JsonSchema(json.dumps(schema))), _TRIE, [END]).automaton
    assert automaton is not None
    automaton.check()
    return automaton


def _allowed(schema: object, *values: object) -> list[bool]:
    automaton = _automaton(schema)
    return [
        allows(automaton, tokens_of(value if isinstance(value, str) else json.dumps(value)))
        for value in values
    ]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a schema takes too long to be shrunk
)
@given(schemas(), st.randoms(use_true_random=False))
def test_every_answer_is_valid_and_within_its_budget(schema, chosen):
    try:
        constraint = compiled(Constraint(JsonSchema(json.dumps(schema))), _TRIE, [END])
    except ConstraintError:
        return
    automaton = constraint.automaton
    if automaton is None:
        return
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    for more in (0, 3, 40, 200):
        budget = automaton.least_tokens + more
        tokens = an_answer(automaton, chosen, budget)
        assert len(tokens) < budget
        assert allows(automaton, tokens)
        validator.validate(json.loads(text_of(tokens)))


def test_members_are_written_in_order_and_no_others():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}},
        "required": ["b"],
    }
    yes = ['{"a":1,"b":"x","c":null}', '{"b": "x"}', '{"b":"x", "c": null}', {"a": -5, "b": ""}]
    no = ["{}", {"b": "x", "a": 1}, {"b": "x", "d": 1}, {"a": 1}, {"a": "1", "b": ""}, '{"b":"x",}']
    assert _allowed(schema, *yes) == [True] * 4
    assert _allowed(schema, *no) == [False] * 6


def test_json_is_allowed_as_models_write_it():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": {"const": "é\n"}},
    }
    value = {"a": [1, 2, 3], "b": "é\n"}
    forms = [
        json.dumps(value, indent=indent, separators=separators, ensure_ascii=False)
        for indent in (None, 2, 4, "\t")
        for separators in ((",", ":"), (",", ": "))
    ] + [json.dumps(value, ensure_ascii=False)]
    assert all(_allowed(schema, *forms))
    assert _allowed(schema, '{"a" : []}', ' {"a": []}', '{"a":  []}') == [False] * 3


def test_a_string_holds_any_character_and_any_escape():
    forms = ['"a\\n\\u00e9\\ud83d\\ude00/\\/"', '"🙂日本"', '"\\""', '""']
    assert all(_allowed({"type": "string"}, *forms))
    broken = ['"\n"', '"\\x"', '"\\ud83d"', '"\\ude00"', '"a"b"', '"\\u12"']
    assert not any(_allowed({"type": "string"}, *broken))


def test_a_length_counts_characters_however_they_are_written():
    schema = {"type": "string", "minLength": 2, "maxLength": 3}
    assert all(_allowed(schema, '"ab"', '"日本🙂"', '"\\ud83d\\ude00\\n"', '"ab\\""'))
    assert not any(_allowed(schema, '"a"', '"abcd"', '"🙂"', '"\\ud83d\\ude00"', '"日本🙂é"'))


def test_long_lengths_are_counted_exactly_while_there_are_few_of_them():
    for least, most in ((0, 700), (300, 700), (300, None)):
        schema = {"type": "string", "minLength": least, "maxLength": most}
        schema = {keyword: value for keyword, value in schema.items() if value is not None}
        for length in (0, 299, 300, 699, 700, 701, 2000):
            fits = least <= length and (most is None or length <= most)
            assert _allowed(schema, "é" * length) == [False]
            assert _allowed(schema, '"' + "é" * length + '"') == [fits]


def test_many_long_lengths_are_never_exceeded_and_leave_room():
    bound = 2000
    names = [f"f{index}" for index in range(8)]
    schema = {
        "type": "object",
        "properties": {name: {"type": "string", "maxLength": bound} for name in names},
        "required": names,
    }
    automaton = _automaton(schema)
    assert automaton.states < 10_000
    chosen = random.Random(1)
    for _ in range(5):
        answer = json.loads(text_of(an_answer(automaton, chosen, 4000)))
        assert all(len(text) <= bound for text in answer.values())
    assert allows(automaton, tokens_of(json.dumps(dict.fromkeys(names, "ab" * 50))))
    assert not allows(automaton, tokens_of(json.dumps(dict.fromkeys(names, "x" * 2001))))


def test_a_pattern_is_written_as_json_may_hold_it():
    schema = {"type": "string", "pattern": '^[a"\\\\\n]+$', "maxLength": 3}
    assert all(_allowed(schema, '"a\\"\\n"', '"\\\\"', '"\\u000a"'))
    assert not any(_allowed(schema, '"a"a"', '"\\"', '"\n"', '"b"', '"aaaa"', '""'))


def test_other_members_are_allowed_where_the_schema_says_so():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }
    assert all(_allowed(schema, {"a": 1, "b": "x", "ab": "y"}, {"b": "x"}, {}, {"": ""}))
    assert not any(_allowed(schema, {"b": 1}, {"b": "x", "a": 1}, {"a": "x"}))
    assert _allowed(schema, '{"\\u0061":"x"}') == [False]


def test_names_have_the_values_that_patterns_demand():
    schema = {
        "type": "object",
        "properties": {"a1": {"minimum": 5}, "b": {"type": "null"}},
        "patternProperties": {"^a": {"type": "integer"}, "^\\d+$": {"type": "string"}},
        "additionalProperties": {"type": "boolean"},
    }
    assert all(_allowed(schema, {"a1": 7, "b": None, "a2": 1}, {"12": "x", "c": True, "ab": 3}, {}))
    assert not any(
        _allowed(
            schema, {"a1": 1}, {"a2": "x"}, {"12": 1}, {"c": 1}, {"a2": True}, {"\u0663": True}
        )
    )
    only = {"type": "object", "patternProperties": {"^a": {"type": "null"}}}
    closed = {**only, "additionalProperties": False}
    for each in (only, closed):
        assert _allowed(each, {"a": None, "ab": None}, {"b": None}) == [True, False]


def test_a_reference_to_itself_is_followed_six_times():
    schema = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "v": {"type": "integer"}},
        "required": ["v"],
    }

    def nested(levels: int) -> str:
        return '{"next":' * levels + '{"v":1}' + ',"v":1}' * levels

    assert _allowed(schema, *map(nested, range(9))) == [True] * 8 + [False]


def test_alternatives_of_one_of_are_allowed_if_they_exclude_each_other():
    kinds = {
        "oneOf": [
            {
                "properties": {"kind": {"const": "a"}, "n": {"type": "integer"}},
                "required": ["kind"],
            },
            {"properties": {"kind": {"const": "b"}, "s": {"type": "string"}}, "required": ["kind"]},
        ]
    }
    assert all(_allowed(kinds, {"kind": "a", "n": 1}, {"kind": "b", "s": ""}))
    assert not any(_allowed(kinds, {"kind": "a", "s": ""}, {"kind": "c"}))
    either = {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
    }
    assert _allowed(either, {"a": None}, {"b": None}, {"a": None, "b": None}, {}) == [
        True, True, False, False,
    ]  # fmt: skip


def test_other_members_count_as_written_when_alternatives_of_one_of_are_compared():
    inner = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
    open_object = {
        "oneOf": [
            {
                "properties": {"p": {"type": "object"}, "r": {"type": "integer"}},
                "required": ["p", "r"],
            },
            {"properties": {"p": {"type": "object", **inner}}, "required": ["p"]},
        ]
    }
    one = [{"p": {}, "r": 1}, {"p": {"b": 1}, "r": 1}, {"p": {"a": 1}}, {"p": {"a": "x"}, "r": 1}]
    both = [{"p": {"a": 1}, "r": 1}, {"p": {"a": 1, "b": 1}, "r": 1}]
    assert _allowed(open_object, *one, *both) == [True] * 4 + [False] * 2
    pair = {"a": {"type": "integer"}, "b": {"type": "integer"}}
    closed = {
        "oneOf": [
            {**inner, "type": "object", "additionalProperties": False},
            {"properties": pair, "required": ["a", "b"], "additionalProperties": False},
        ]
    }
    assert _allowed(closed, {"a": 1}, {"a": 1, "b": 2}, {"b": 2}) == [True, True, False]


def test_what_one_of_is_merged_with_allows_no_value_of_two_alternatives():
    either = {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
    objects = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}}
    both, one = {"a": None, "b": None}, {"b": None}
    for schema in (
        {"allOf": [either, objects]},
        {"$defs": {"either": either}, "$ref": "#/$defs/either", **objects},
        {**objects, "anyOf": [either]},
        {**objects, "if": {}, "then": either},
    ):
        assert _allowed(schema, both, one, {}) == [False, True, False]
    inner = {"properties": {"x": either}, "allOf": [{"properties": {"x": objects}}]}
    assert _allowed(inner, {"x": both}, {"x": one}) == [False, True]
    kinds = {"allOf": [either, {"type": ["object", "null"]}]}
    assert _allowed(kinds, None, {"a": 1}) == [False, True]


def test_values_without_a_shape_are_left_out_of_the_other_alternatives_too():
    half = {"oneOf": [{"not": {"type": "integer"}}, {"type": "number"}]}
    assert _allowed(half, 0.5, '"a"', 1) == [False, True, True]
    objects = {"type": "object", "required": ["k"]}
    members = {"oneOf": [{**objects, "properties": {"k": each}} for each in half["oneOf"]]}
    assert _allowed(members, {"k": 0.5}, {"k": "a"}, {"k": 1}) == [False, True, True]
    never = {"allOf": [{"properties": {"k": False}}, {"required": ["k"]}]}
    assert _allowed({"oneOf": [never, {"type": ["null", "object"]}]}, None, {}) == [False, True]


def test_members_that_are_not_evaluated_are_not_written():
    for types in ({"type": "object"}, {}):
        nothing = {**types, "unevaluatedProperties": False}
        assert _allowed(nothing, {}, {"a": 1}) == [True, False]
    listed = {
        "allOf": [{"properties": {"a": {"type": "integer"}}}],
        "required": ["a"],
        "unevaluatedProperties": False,
    }
    assert _allowed(listed, {"a": 1}, {"a": 1, "b": 1}) == [True, False]
    patterns = {"patternProperties": {"^a": {"type": "null"}}, "unevaluatedProperties": False}
    assert _allowed(patterns, {"a": None}, {"b": None}) == [True, False]
    with pytest.raises(ConstraintError, match="properties do not name"):
        _automaton({**listed, "required": ["a", "c"]})


def test_a_required_name_with_a_pattern_is_not_an_additional_one():
    schema = {
        "type": "object",
        "patternProperties": {"^a": {"type": "integer"}},
        "required": ["a1"],
        "additionalProperties": False,
    }
    assert _allowed(schema, {"a1": 1}, {"a1": 1, "a2": 2}, {"a1": None}) == [True, True, False]
    del schema["additionalProperties"]
    both = {"allOf": [schema, {"additionalProperties": {"minimum": 5}}]}
    assert _allowed(both, {"a1": 5}, {"a1": 4}) == [True, False]


def test_numbers_and_lengths_of_any_size_are_read():
    assert _allowed({"type": "integer", "multipleOf": 1e-30}, "7", "-1") == [True, True]
    with pytest.raises(ConstraintError, match="minLength above"):
        _automaton({"type": "string", "minLength": 5_000_000_000})


def test_values_are_equal_if_json_says_so():
    for one, other in (([1.0], [1]), ({"a": {"b": 2.0}}, {"a": {"b": 2}}), (1.0, 1)):
        assert same(one, other)
    for one, other in ((True, 1), ([True], [1]), ({"a": 0}, {"a": False}), ([1], [1, 2])):
        assert not same(one, other)


def test_what_not_forbids_is_not_written():
    objects = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    }
    both = {**objects, "not": {"required": ["a", "b"]}}
    assert _allowed(both, {}, {"a": 1}, {"b": 1}, {"a": 1, "b": 1}) == [True, True, True, False]
    neither = {**objects, "not": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}}
    assert _allowed(neither, {}, {"a": 1}, {"b": 1}) == [True, False, False]
    value = {**objects, "not": {"properties": {"a": {"minimum": 5}}, "required": ["b"]}}
    yes, no = [{}, {"a": 9}, {"a": 1, "b": 1}], [{"b": 1}, {"a": 5, "b": 1}]
    assert _allowed(value, *yes, *no) == [True] * 3 + [False] * 2
    open_object = {"type": "object", "not": {"required": ["a"]}}
    assert _allowed(open_object, {}, {"b": [1]}, {"a": 1}, {"b": 1, "a": 1}) == [
        True, True, False, False,
    ]  # fmt: skip


def test_excluded_values_are_not_written_in_any_way():
    strings = {"type": "string", "not": {"enum": ["a", "ab", 'q"', 3]}}
    assert _allowed(strings, '""', '"abc"', '"b"', '"z\\u00e9"') == [True] * 4
    assert _allowed(strings, '"a"', '"ab"', '"q\\""', '"\\u0061"', '"a\\u0062"') == [False] * 5
    numbers = {"type": "number", "not": {"enum": [0, 2.5]}}
    assert _allowed(numbers, "1", "-3.5", "2.51", "2.49", "0.001") == [True] * 5
    assert _allowed(numbers, "0", "-0", "0.0", "0e5", "2.5", "2.50", "25e-1") == [False] * 7
    others = {"not": {"enum": [None, True, {}, []]}}
    assert _allowed(others, "false", "1", '{"a":1}', "[1]") == [True] * 4
    assert _allowed(others, "null", "true", "{}", "[]", "{ }") == [False] * 5
    listed = {"enum": ["a", "b", 1, 1.5], "not": {"enum": ["b", 1.0]}}
    assert _allowed(listed, '"a"', "1.5", '"b"', "1") == [True, True, False, False]


def test_the_opposites_of_types_and_patterns_are_written():
    assert _allowed({"not": {"type": ["string", "null"]}}, "1", "[]", '""', "null") == [
        True, True, False, False,
    ]  # fmt: skip
    assert _allowed({"not": {"type": "integer"}}, '"a"', "{}", "1", "1.0") == [
        True, True, False, False,
    ]  # fmt: skip
    pattern = {"type": "string", "not": {"pattern": "^a|\\d$"}, "maxLength": 4}
    assert _allowed(pattern, '""', '"ba"', '"1a"', '"a"', '"b1"', '"bcdef"') == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    # Dialects differ on whether this is a digit.
    assert _allowed(pattern, '"\u0663"') == [False]
    twice = {"not": {"not": {"type": "integer", "minimum": 3}}}
    assert _allowed(twice, "3", "2", '"a"') == [True, False, False]


def test_a_condition_decides_what_else_is_demanded():
    schema = {
        "type": "object",
        "properties": {"kind": {"type": "string"}, "n": {"type": "integer"}},
        "if": {"properties": {"kind": {"const": "a"}}, "required": ["kind"]},
        "then": {"required": ["n"]},
        "else": {"properties": {"n": False}},
    }
    yes = [{"kind": "a", "n": 1}, {"kind": "b"}, {}]
    no = [{"kind": "a"}, {"kind": "b", "n": 1}, {"n": 1}]
    assert _allowed(schema, *yes, *no) == [True] * 3 + [False] * 3
    del schema["if"]["required"]
    assert _allowed(schema, {"n": 1}, {}) == [True, False]


def test_many_conditions_on_one_member_do_not_multiply():
    kinds = [f"k{index}" for index in range(40)]
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": [*kinds, "other"]}, "v": {}},
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": {"properties": {"v": {"const": kind}}},
            }
            for kind in kinds
        ],
    }
    assert _allowed(schema, {"kind": "k7", "v": "k7"}, {"kind": "other", "v": "x"}, {"v": 1}) == (
        [True] * 3
    )
    assert _allowed(schema, {"kind": "k7", "v": "k8"}, {"kind": "k7", "v": 1}) == [False] * 2


@pytest.mark.parametrize("keyword", ["dependencies", "dependentRequired"])
def test_a_member_demands_other_members(keyword):
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in "abc"},
        keyword: {"a": ["b"], "b": ["a"]},
    }
    assert _allowed(schema, {}, {"c": 1}, {"a": 1, "b": 1}, {"a": 1}, {"b": 1, "c": 1}) == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("keyword", ["dependencies", "dependentSchemas"])
def test_a_member_demands_a_schema(keyword):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        keyword: {"a": {"properties": {"b": {"minimum": 5}}, "required": ["b"]}},
    }
    assert _allowed(schema, {"b": 1}, {"a": 1, "b": 5}, {"a": 1}, {"a": 1, "b": 4}) == [
        True, True, False, False,
    ]  # fmt: skip


def test_alternatives_of_one_of_that_overlap_leave_out_what_both_allow():
    closed = {"type": "object", "additionalProperties": False}
    one, two = (
        {"properties": {name: {"type": "null"} for name in names}} for names in ("ab", "ac")
    )
    schema = {"oneOf": [{**closed, **one}, {**closed, **two}]}
    yes = [{"b": None}, {"a": None, "b": None}, {"c": None}, {"a": None, "c": None}]
    assert (
        _allowed(schema, *yes, {}, {"a": None}, {"b": None, "c": None}) == [True] * 4 + [False] * 3
    )
    numbers = {"oneOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 6}]}
    assert _allowed(numbers, "2", "7", "3", "6") == [True, True, False, False]


def test_an_array_contains_what_it_has_to():
    schema = {"type": "array", "items": {"type": "integer"}, "contains": {"minimum": 5}}
    yes, no = ([5], [1, 9], [1, 1, 6, 2]), ([], [1], [1, 2, 3], ["9"])
    assert _allowed(schema, *yes, *no) == [True] * 3 + [False] * 4
    schema |= {"minItems": 2, "maxItems": 3}
    yes, no = ([1, 5], [5, 1], [1, 1, 5]), ([5], [1, 1], [1, 1, 1, 5], [5, 5, 5, 5])
    assert _allowed(schema, *yes, *no) == [True] * 3 + [False] * 4
    none = {"type": "array", "not": {"contains": {"type": "string"}}}
    assert _allowed(none, [], [1, None], ["a"], [1, "a"]) == [True, True, False, False]


def test_unique_items_out_of_few_values_have_any_order():
    schema = {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True}
    yes = ([], ["b"], ["c", "a"], ["b", "c", "a"])
    assert _allowed(schema, *yes, ["a", "a"], ["a", "b", "a"]) == [True] * 4 + [False] * 2
    schema |= {"minItems": 1, "maxItems": 2}
    assert _allowed(schema, ["c", "b"], [], ["a", "b", "c"]) == [True, False, False]
    kinds = {"type": "array", "items": {"type": ["boolean", "null"]}, "uniqueItems": True}
    assert _allowed(kinds, [None, True, False], [True, True]) == [True, False]


def test_unique_items_out_of_many_values_have_the_order_of_the_schema():
    names = [f"v{index}" for index in range(30)]
    schema = {"type": "array", "items": {"enum": names}, "uniqueItems": True, "minItems": 2}
    assert _allowed(schema, names, ["v3", "v7"], ["v3"], ["v7", "v3"], ["v3", "v3"]) == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_unique_items_of_any_kind_are_refused_even_without_a_type():
    for schema in ({"uniqueItems": True}, {"type": "array", "items": {"type": "string"}}):
        with pytest.raises(ConstraintError, match="uniqueItems is supported only"):
            _automaton({"properties": {"a": {**schema, "uniqueItems": True}}})


def test_names_are_valid_by_their_schema():
    schema = {
        "type": "object",
        "properties": {"ab": {"type": "integer"}, "x": {"type": "integer"}},
        "propertyNames": {"pattern": "^a", "maxLength": 3},
        "additionalProperties": {"type": "null"},
    }
    yes, no = ({}, {"ab": 1, "abc": None}, {"a": None}), ({"x": 1}, {"abcd": None}, {"b": None})
    assert _allowed(schema, *yes, *no) == [True] * 3 + [False] * 3
    listed = {"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}}
    assert _allowed(listed, {"b": 1, "a": 2}, {"c": 1}) == [True, False]
    assert _allowed({**listed, "required": ["a"]}, {"a": 2}, {}) == [True, False]


def test_listed_members_are_counted():
    schema = {"type": "object", "properties": {name: {"type": "null"} for name in "abcd"}}
    schema |= {"required": ["b"], "minProperties": 2, "maxProperties": 3}
    texts = ["b", "ab", "bd", "abd", "bcd", "abcd", "ac"]
    objects = [dict.fromkeys(text) for text in texts]
    assert _allowed(schema, *objects) == [False, True, True, True, True, False, False]
    del schema["maxProperties"]
    more = {**schema, "additionalProperties": {"type": "null"}}
    assert _allowed(schema, dict.fromkeys("abcd"), {"b": None}) == [True, False]
    assert _allowed(more, {"b": None, "x": None}, {"b": None}) == [True, False]


def test_limits_of_any_size_cost_nothing():
    members = {"properties": {"a": {"type": "null"}, "b": {}}, "maxProperties": 10**12}
    assert _allowed(members, {"a": None, "b": 1}, {"a": 1}) == [True, False]
    with pytest.raises(ConstraintError, match="states and steps"):
        _automaton({"type": "array", "contains": {"type": "null"}, "maxItems": 10**12})


def test_a_format_leaves_room_below_any_limit_of_length():
    schema = {"type": "object", "properties": {"e": {"format": "email", "maxLength": 1024}}}
    assert _allowed(schema, {"e": "someone.else@mail.example.org"}, {"e": "a@b"}) == [True, False]


@pytest.mark.parametrize("name", PATTERNS)
def test_what_is_written_for_a_format_has_it(name):
    schema = {"type": "string", "format": name}
    automaton = _automaton(schema)
    validator = validator_for(schema, validate_formats=True)
    for seed in range(12):
        budget = automaton.least_tokens + seed * 40
        text = text_of(an_answer(automaton, random.Random(seed), budget))
        assert validator.is_valid(json.loads(text)), text


def test_a_long_pattern_is_written_below_a_limit_of_length():
    schema = {"type": "string", "pattern": "^a{300,}$", "maxLength": 500}
    assert _allowed(schema, "a") == [False]
    assert _allowed(schema, '"' + 300 * "a" + '"', '"' + 299 * "a" + '"') == [True, False]


def test_members_of_an_opposite_are_not_taken_as_evaluated():
    schema = {
        "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
        "then": {"properties": {"b": True}},
        "unevaluatedProperties": False,
    }
    twice = [{"properties": {"a": True}}, {"additionalProperties": True}]
    negated = [{"not": {"not": each}, "unevaluatedProperties": False} for each in twice]
    for each in (schema, *negated):
        with pytest.raises(ConstraintError, match="may not be evaluated"):
            _automaton(each)


def test_values_of_an_enum_that_have_another_type_are_not_written():
    assert _allowed({"enum": [2.5, 3, "3", None], "type": "integer"}, "2.5", "3") == [False, True]
    one_of = {"enum": [-2.25, 4.0, False], "oneOf": [{"minimum": -8, "type": "integer"}]}
    assert _allowed(one_of, "-2.25", "4.0", "false") == [False, True, False]
    assert _allowed({"enum": [2.5, 3, True], "type": "number"}, "2.5", "3", "true") == [
        *(True, True, False)
    ]


def test_half_a_surrogate_pair_is_written_as_an_escape():
    assert _allowed({"enum": ["\ud800x"]}, '"\\ud800x"', '"?x"') == [True, False]


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"properties": {"a": {"not": {"multipleOf": 2}}}}, "/properties/a/not/multipleOf"),
        ({"properties": {"x/y": {"uniqueItems": True, "type": "array"}}}, "/properties/x~1y"),
        ({"$defs": {"d": {"type": "text"}}, "$ref": "#/$defs/d"}, "/$defs/d/type"),
        ({"properties": {"a": {"pattern": "("}}}, "/properties/a"),
        ({"anyOf": [True, {"$ref": "#/nowhere"}]}, "/anyOf/1/$ref"),
        ({"properties": {"a": 1}}, "/properties/a"),
    ],
)
def test_what_cannot_be_enforced_is_named_by_its_path(schema, path):
    with pytest.raises(ConstraintError) as refused:
        compiled(Constraint(JsonSchema(json.dumps(schema))), _TRIE, [END])
    assert refused.value.path == path


def test_a_schema_without_values_is_refused():
    with pytest.raises(ConstraintError, match="nothing is valid"):
        _automaton({"type": "string", "enum": [1]})


def test_any_object_is_nested_five_deep():
    automaton = compiled(Constraint(JsonObject()), _TRIE, [END]).automaton
    assert automaton is not None
    for levels in range(1, 8):
        text = '{"a":' * levels + "1" + "}" * levels
        assert allows(automaton, tokens_of(text)) == (levels <= 5)
    assert allows(automaton, tokens_of('{"a": [{"b": [[]]}], "": null}'))
    assert not allows(automaton, tokens_of("[1]"))
    for seed in range(20):
        tokens = an_answer(automaton, random.Random(seed), 60)
        assert isinstance(json.loads(text_of(tokens)), dict)
