import json
import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from app.constraint.compiling import compiled
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
    with pytest.raises(ConstraintError, match="two alternatives of oneOf"):
        _automaton(open_object)
    pair = {"a": {"type": "integer"}, "b": {"type": "integer"}}
    closed = {
        "oneOf": [
            {**inner, "type": "object", "additionalProperties": False},
            {"properties": pair, "required": ["a", "b"], "additionalProperties": False},
        ]
    }
    assert _allowed(closed, {"a": 1}, {"a": 1, "b": 2}, {"b": 2}) == [True, True, False]


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
        ({"properties": {"a": {"items": {"not": {}}}}}, "/properties/a/items/not"),
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
