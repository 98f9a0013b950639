import json
import random
import re
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from app.chat_format.events import ToolCallEnd
from app.chat_format.gemma import AnswerParser
from app.constraint import compiling, limits
from app.constraint.compiling import Forced, compiled
from app.constraint.kinds import (
    Callable,
    Calls,
    Constraint,
    Grammar,
    JsonSchema,
    OneOf,
    Pattern,
    TextAndCalls,
)
from app.constraint.limits import ConstraintError, Effort, NoWayError
from app.constraint.schema import Depths
from tests.app.constraint.answers import (
    CONTROLS,
    END,
    FIRST,
    allows,
    an_answer,
    pieces_of,
    text_of,
    tokens_of,
    toy_trie,
)

_TRIE = toy_trie()
_PARAMETERS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "odd key": {"type": "array", "items": {"type": ["integer", "null"]}},
        "when": {"type": "string", "enum": ["a b", '"now"', "{,}:"]},
        "more": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "any": {},
    },
    "required": ["name", "when"],
}


def _compiled(kind, thought="none"):
    return compiled(Constraint(kind, thought), _TRIE, [END])


def _control(name: str) -> int:
    return FIRST + CONTROLS.index(name)


def _calls(tokens: list[int]) -> list[ToolCallEnd]:
    """Returns the calls of an answer, as they are read from it."""
    parser = AnswerParser()
    events = [event for piece in pieces_of(tokens) for event in parser.feed(piece)]
    return [event for event in [*events, *parser.finish()] if isinstance(event, ToolCallEnd)]


def test_every_call_is_read_as_a_complete_call_with_valid_arguments():
    tools = (Callable("find", json.dumps(_PARAMETERS), True), Callable("stop.now", None, False))
    automaton = _compiled(Calls(tools, 1, 3)).automaton
    validator = Draft202012Validator(_PARAMETERS)
    counts, names = set(), set()
    for seed in range(150):
        chosen = random.Random(seed)
        budget = automaton.least_tokens + chosen.choice((0, 5, 60, 300))
        tokens = an_answer(automaton, chosen, budget)
        assert len(tokens) < budget
        calls = _calls(tokens)
        assert len(calls) == tokens.count(_control("<tool_call|>"))
        for call in calls:
            assert call.complete
            arguments = json.loads(call.arguments)
            if call.name == "find":
                validator.validate(arguments)
            else:
                assert arguments == {}
        counts.add(len(calls))
        names |= {call.name for call in calls}
    assert counts == {1, 2, 3}
    assert names == {"find", "stop.now"}


def test_a_call_that_is_named_is_forced_up_to_its_arguments():
    forced = _compiled(Calls((Callable("find", json.dumps(_PARAMETERS), True),), 1, 1)).forced
    assert forced.pieces == (_control("<|tool_call>"), "call:find{name:", _control('<|"|>'))
    assert forced.tokens(tokens_of)[0] == _control("<|tool_call>")
    assert forced.tokens(tokens_of)[-1] == _control('<|"|>')


def test_the_last_token_of_a_forced_text_may_become_a_longer_one():
    forced = _compiled(Pattern("abc[0-9]")).forced
    assert forced == Forced(("abc",))
    assert forced.tokens(lambda text: list(text.encode())) == [97, 98]
    whole = _compiled(OneOf(("abc",))).forced
    assert whole.tokens(lambda text: list(text.encode())) == [97, 98, 99]


def test_only_calls_of_strict_tools_are_limited_in_a_free_answer():
    tools = (Callable("find", json.dumps(_PARAMETERS), True), Callable("stop", "{}", False))
    automaton = _compiled(TextAndCalls(tools)).automaton
    call, end, quote = map(_control, ("<|tool_call>", "<tool_call|>", '<|"|>'))
    valid = [call, *tokens_of("call:find{name:"), quote, quote, *tokens_of(",when:"), quote]
    valid += [*tokens_of("a b"), quote, *tokens_of("}"), end]
    assert allows(automaton, tokens_of("Only text, {[ of any kind."))
    assert allows(automaton, [*tokens_of("Text"), *valid, *tokens_of("\n"), *valid])
    assert allows(automaton, [call, *tokens_of("call:stop{whatever: 1, broken"), end])
    assert not allows(automaton, [call, *tokens_of("call:find{}"), end])
    assert not allows(automaton, [call, *tokens_of("call:other{}"), end])
    assert not allows(automaton, valid[:-1])
    thought = [_control("<|channel>"), *tokens_of("thought\nHm."), _control("<channel|>")]
    assert allows(automaton, [*thought, *tokens_of("Text"), *valid])
    one = _compiled(TextAndCalls(tools, most=1)).automaton
    assert allows(one, valid)
    assert not allows(one, [*valid, *valid])


def test_a_constraint_holds_behind_a_thought():
    kind = OneOf(("yes", "no"))
    end = _control("<channel|>")
    yes, hm = tokens_of("yes"), tokens_of("Hm, no.")
    opened = _compiled(kind, "open").automaton
    assert allows(opened, [*hm, end, *yes])
    assert allows(opened, [end, *tokens_of("\n"), *yes])
    assert not allows(opened, yes)
    allowed = _compiled(kind, "allowed").automaton
    assert allows(allowed, yes)
    assert allows(allowed, [_control("<|channel>"), *hm, end, *yes])
    assert not allows(allowed, hm)
    assert not allows(allowed, [_control("<|channel>"), *hm])


def test_choices_and_patterns_are_allowed_from_beginning_to_end():
    choices = _compiled(OneOf(("red", "green", "gre", "é🙂", ""))).automaton
    allowed = [
        allows(choices, tokens_of(text)) for text in ("red", "gre", "é🙂", "", "gree", "redx")
    ]
    assert allowed == [True, True, True, True, False, False]
    pattern = r"^\w{2,4}-(\d+|日本)$"
    automaton = _compiled(Pattern(pattern)).automaton
    for seed in range(30):
        answer = text_of(an_answer(automaton, random.Random(seed), automaton.least_tokens + 20))
        assert re.fullmatch(pattern, answer)


def test_schemas_that_no_automaton_expresses_become_grammars():
    made = _compiled(JsonSchema(json.dumps({"type": "number", "multipleOf": 0.5})))
    assert made.automaton is None
    assert made.grammar is not None
    assert _compiled(Grammar('start: "a"+'), "open").grammar is not None


def test_a_vocabulary_without_the_markers_of_calls_has_no_calls():
    without = replace(_TRIE, controls={"<turn|>": END})
    with pytest.raises(ConstraintError, match="lacks the control token"):
        compiled(Constraint(Calls((Callable("f", None, True),))), without, [END])


def test_grammars_with_faults_are_refused():
    with pytest.raises(ConstraintError, match="unknown name"):
        _compiled(Grammar("start: b"))


@pytest.mark.parametrize(
    ("parameter", "why", "path"),
    [
        (
            {"not": {"multipleOf": 2}},
            "not with multipleOf is not supported",
            "/properties/a/not/multipleOf",
        ),
        ({"pattern": "(a|b)*a(a|b){15}"}, "has more than", "/properties/a"),
        ({"type": "text"}, "'text' is no type", "/properties/a/type"),
        (False, "nothing is valid", ""),
    ],
    ids=["keyword", "size", "type", "nothing"],
)
def test_arguments_that_cannot_be_enforced_are_refused_for_strict_tools_only(parameter, why, path):
    schema = json.dumps({"properties": {"a": parameter}, "required": ["a"]})
    others = (Callable("a", None, True), Callable("z", "{}", True))
    with pytest.raises(ConstraintError, match=why) as refused:
        _compiled(Calls((others[0], Callable("f", schema, True), others[1])))
    assert refused.value.path == path
    assert refused.value.tool == "f"
    automaton = _compiled(Calls((Callable("f", schema, False),), 1, 1)).automaton
    (call,) = _calls(an_answer(automaton, random.Random(0), 60))
    assert isinstance(json.loads(call.arguments), dict)


@pytest.mark.parametrize(
    ("schema", "allowed"),
    [
        (None, ["{}"]),
        ({"type": "object", "properties": {}}, ["{}"]),
        ({"properties": {}, "required": [], "title": "F", "type": "object"}, ["{}"]),
        ({"type": "object", "properties": {}, "additionalProperties": False}, ["{}"]),
        ({"type": "object"}, ["{}", "{a:1}", "{a:1,b:[true]}"]),
        ({}, ["{}", "{a:1}", "{a:1,b:[true]}"]),
        (
            {"type": "object", "properties": {}, "additionalProperties": True},
            ["{}", "{a:1}", "{a:1,b:[true]}"],
        ),
        ({"properties": {}, "minProperties": 1}, ["{a:1}", "{a:1,b:[true]}"]),
        ({"properties": {}, "anyOf": [{"properties": {"a": {"const": 1}}}]}, ["{}", "{a:1}"]),
        ({"$ref": "#/$defs/f", "$defs": {"f": {"properties": {"a": {}}}}}, ["{}", "{a:1}"]),
    ],
)
def test_a_tool_whose_schema_leaves_its_properties_open_may_have_any_arguments(schema, allowed):
    tool = Callable("f", None if schema is None else json.dumps(schema), True)
    automaton = _compiled(Calls((tool,))).automaton
    call, end = map(_control, ("<|tool_call>", "<tool_call|>"))
    texts = ["{}", "{a:1}", "{a:1,b:[true]}"]
    calls = [[call, *tokens_of(f"call:f{text}"), end] for text in texts]
    assert [
        text for text, each in zip(texts, calls, strict=True) if allows(automaton, each)
    ] == allowed


@pytest.mark.parametrize(
    "kind",
    [
        JsonSchema(
            json.dumps(
                {
                    "$defs": {
                        **{
                            f"d{n}": {
                                "properties": {
                                    "a": {"$ref": f"#/$defs/d{n + 1}"},
                                    "b": {"$ref": f"#/$defs/d{n + 1}"},
                                    "not": {"not": {}},
                                }
                            }
                            for n in range(60)
                        },
                        "d60": {"type": "string", "not": {"const": "a"}},
                    },
                    "$ref": "#/$defs/d0",
                }
            )
        ),
        Pattern("(.{0,300}a){0,300}"),
        Pattern("(a|b)*a(a|b){40}"),
        OneOf(tuple(f"{n} " + f"{n}x" * 400 for n in range(500))),
    ],
    ids=["references", "repetitions", "subsets", "choices"],
)
def test_what_stands_for_too_much_is_refused_early(kind, monkeypatch):
    monkeypatch.setattr(limits, "MOST_SECONDS", 0.3)
    with pytest.raises(NoWayError):
        _compiled(kind)


def test_nested_alternatives_do_not_multiply(monkeypatch):
    monkeypatch.setattr(limits, "MOST_SECONDS", 0.3)
    schema: dict = {"type": "string"}
    for _ in range(12):
        schema = {"anyOf": [schema, schema]}
    made = _compiled(JsonSchema(json.dumps(schema)))
    assert made.automaton is None  # a grammar shares what is written twice
    assert made.grammar is not None


_TREE = {
    "type": "object",
    "properties": {f"branch{index}": {"$ref": "#"} for index in range(3)},
    "additionalProperties": False,
}
_WIDE = {
    "$defs": {"text": {"type": "string"}},
    "type": "object",
    "properties": {f"p{index}": {"$ref": "#/$defs/text"} for index in range(40)},
}


@pytest.mark.parametrize(
    ("schema", "attempts"),
    [
        (_WIDE, 1),  # no reference refers to itself, so fewer of them make the same automaton
        (_TREE, 3),
    ],
)
def test_an_automaton_that_was_too_large_is_not_made_again(schema, attempts, monkeypatch):
    tried = []

    class Counted(Effort):
        def __init__(self, most_states=0, most_seconds=None):
            super().__init__(most_states, most_seconds)
            tried.append(most_states)

    depths = (Depths(6, 1, 500), Depths(4, 1, 500), Depths(1, 1, 500))
    monkeypatch.setattr(compiling, "_DEPTHS", depths)
    monkeypatch.setattr(compiling, "Effort", Counted)
    constraint = _compiled(JsonSchema(json.dumps(schema)))
    assert (constraint.automaton is None) == (schema is _WIDE)
    assert tried.count(500) == attempts
