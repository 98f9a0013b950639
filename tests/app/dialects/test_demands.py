"""What requests demand of their answers, under every name."""

import json

import pytest

from app.answer.constraint import Demand
from app.constraint import kinds
from app.dialects.anthropic.schema import MessagesRequest
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.demands import Choice, answer_demand, read_choice
from app.dialects.responses.schema import ResponseRequest
from app.errors import BadRequest
from app.prompting.conversation import Tool

CHAT = {"messages": [{"role": "user", "content": "x"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
BY_SCHEMA = kinds.JsonSchema(json.dumps(SCHEMA))


def tool(name, *, strict=False):
    return Tool(name, None, SCHEMA, strict, f"tools.{name}.function.parameters")


def calls_demand(kind, *names, field="tools"):
    return Demand(kind, field, {name: f"tools.{name}.function.parameters" for name in names})


def callables(*names, strict=False):
    return tuple(kinds.Callable(name, json.dumps(SCHEMA), strict) for name in names)


@pytest.mark.parametrize(
    ("fields", "kind", "field"),
    [
        ({}, None, None),
        ({"response_format": {"type": "text"}}, None, None),
        ({"response_format": {"type": "json_object"}}, kinds.JsonObject(), "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            BY_SCHEMA,
            "response_format.json_schema.schema",
        ),
        ({"guided_json": SCHEMA}, BY_SCHEMA, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, BY_SCHEMA, "guided_json"),
        ({"guided_regex": "a+"}, kinds.Pattern("a+"), "guided_regex"),
        ({"guided_choice": ["a", "b"]}, kinds.OneOf(("a", "b")), "guided_choice"),
        ({"guided_grammar": 'start: "a"'}, kinds.Grammar('start: "a"'), "guided_grammar"),
        ({"structured_outputs": {"json": SCHEMA}}, BY_SCHEMA, "structured_outputs.json"),
        (
            {"structured_outputs": {"json_object": True}},
            kinds.JsonObject(),
            "structured_outputs.json_object",
        ),
        (
            {"structured_outputs": {"choice": ["a"], "disable_any_whitespace": False}},
            kinds.OneOf(("a",)),
            "structured_outputs.choice",
        ),
        ({"structured_outputs": {}}, None, None),
    ],
)
def test_a_chat_demands_a_form_under_every_name(fields, kind, field):
    demand = ChatCompletionRequest.model_validate({**CHAT, **fields}).text_demand
    assert demand == (None if kind is None else Demand(kind, field))


def test_responses_and_messages_demand_a_schema_under_their_names():
    text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    response = ResponseRequest.model_validate({"input": "x", "text": text})
    assert response.text_demand == Demand(BY_SCHEMA, "text.format.schema")
    shape = {"type": "json_schema", "schema": SCHEMA}
    for fields, field in (
        ({"output_config": {"format": shape}}, "output_config.format.schema"),
        ({"output_format": shape}, "output_format.schema"),
    ):
        body = MessagesRequest.model_validate({**CHAT, "max_tokens": 5, **fields})
        assert body.text_demand == Demand(BY_SCHEMA, field)


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        (None, Choice("auto")),
        ("none", Choice("none")),
        ("required", Choice("required")),
        ({"type": "function", "function": {"name": "f"}}, Choice("required", ("f",), single=True)),
        ({"type": "function", "name": "f"}, Choice("required", ("f",), single=True)),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "f"}}],
                },
            },
            Choice("auto", ("f",)),
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "x"}, {"name": "f"}]},
            Choice("required", ("f",)),
        ),
    ],
)
def test_a_tool_choice_is_read_in_the_forms_of_both_apis(value, choice):
    assert read_choice(value) == choice


def test_calls_are_demanded_if_one_is_required():
    tools = [tool("f"), tool("g")]
    demand = answer_demand(None, tools, Choice("required"), parallel=True)
    assert demand == calls_demand(kinds.Calls(callables("f", "g"), 1, None), "f", "g")
    demand = answer_demand(None, tools, Choice("required"), parallel=False)
    assert demand == calls_demand(kinds.Calls(callables("f", "g"), 1, 1), "f", "g")
    named = Choice("required", ("g",), single=True)
    demand = answer_demand(None, tools, named, parallel=True)
    assert demand == calls_demand(kinds.Calls(callables("g"), 1, 1), "g")


def test_text_with_calls_is_demanded_if_only_some_calls_are_allowed():
    tools = [tool("f"), tool("g")]
    assert answer_demand(None, tools, Choice("auto"), parallel=True) is None
    demand = answer_demand(None, tools, Choice("auto", ("f",)), parallel=True)
    assert demand == calls_demand(kinds.TextAndCalls(callables("f"), None), "f")
    demand = answer_demand(None, [tool("f", strict=True)], Choice("auto"), parallel=False)
    assert demand == calls_demand(kinds.TextAndCalls(callables("f", strict=True), 1), "f")


def test_a_form_or_calls_are_demanded_if_a_form_comes_with_tools():
    form = Demand(kinds.JsonObject(), "response_format")
    assert answer_demand(form, [], Choice("auto"), parallel=True) == form
    assert answer_demand(form, [tool("f")], Choice("none"), parallel=True) == form
    demand = answer_demand(form, [tool("f")], Choice("auto"), parallel=True)
    kind = kinds.TextOrCalls(kinds.JsonObject(), callables("f"), None)
    assert demand == calls_demand(kind, "f", field="response_format")


def test_a_call_and_a_form_that_are_both_demanded_are_both_named():
    form = Demand(kinds.JsonObject(), "guided_json")
    with pytest.raises(BadRequest, match=r"^tool_choice: .* together with guided_json\.$"):
        answer_demand(form, [tool("f")], Choice("required"), parallel=True)


@pytest.mark.parametrize(
    ("form", "tools", "choice"),
    [
        (None, [], Choice("required")),
        (None, [tool("f")], Choice("required", ("g",))),
        (None, [tool("f")], Choice("auto", ("f", "g"))),
        (Demand(kinds.JsonObject(), "response_format"), [tool("f")], Choice("required")),
    ],
)
def test_a_choice_that_cannot_be_made_names_the_field(form, tools, choice):
    with pytest.raises(BadRequest) as error:
        answer_demand(form, tools, choice, parallel=True)
    assert error.value.param == "tool_choice"
