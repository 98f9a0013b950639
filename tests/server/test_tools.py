"""Tool calls and thinking through the official SDK, from the trained demo model."""

import json
import socket

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


def weather(city=None, **function):
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", **(city or {})}},
        "required": ["city"],
    }
    described = {"name": "get_weather", "description": "Get the weather", "parameters": parameters}
    return {"type": "function", "function": {**described, **function}}


def ask(client, messages=QUESTION, tools=(), **options):
    if tools:
        options["tools"] = list(tools)
    return client.chat.completions.create(model="demo", messages=messages, seed=0, **options)


def streamed(client, **options):
    """Returns the choice that the SDK assembles from a stream, and the chunks of the stream."""
    with client.chat.completions.stream(model="demo", seed=0, **options) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        return stream.get_final_completion().choices[0], chunks


def test_a_question_that_a_tool_can_answer_becomes_a_call(demo_client):
    choice = ask(demo_client, tools=[weather()]).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_the_sdk_assembles_the_same_call_from_a_stream(demo_client):
    choice, chunks = streamed(demo_client, messages=QUESTION, tools=[weather()])
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    deltas = [d for c in chunks if c.choices for d in c.choices[0].delta.tool_calls or ()]
    assert [d.index for d in deltas] == [0] * len(deltas)
    assert [d.id for d in deltas if d.id] == [call.id]
    assert [c.choices[0].finish_reason for c in chunks][-1] == "tool_calls"


def test_the_model_answers_when_it_gets_the_result_of_a_tool(demo_client):
    message = ask(demo_client, tools=[weather()]).choices[0].message
    result = {
        "role": "tool",
        "tool_call_id": message.tool_calls[0].id,
        "content": json.dumps({"temperature": 21, "condition": "sunny"}),
    }
    turns = [*QUESTION, message.to_dict(), result]
    choice = ask(demo_client, turns, tools=[weather()]).choices[0]
    assert choice.message.content == "It is 21 degrees and sunny in Paris."
    assert choice.finish_reason == "stop"


def test_a_call_that_max_tokens_cuts_off_is_never_returned_as_text(demo_client):
    whole = ask(demo_client, tools=[weather()]).usage.completion_tokens
    for cut in range(1, whole):
        choice = ask(demo_client, tools=[weather()], max_tokens=cut).choices[0]
        assert (choice.message.content or "", choice.finish_reason) == ("", "length")


def test_no_tool_is_called_without_tools_or_with_the_choice_none(demo_client):
    for options in ({}, {"tools": [weather()], "tool_choice": "none"}):
        message = ask(demo_client, **options).choices[0].message
        assert message.tool_calls is None
        assert message.content == "I cannot look up the weather without a tool."


@pytest.mark.parametrize(("strict", "city"), [(True, "London"), (False, "Paris")])
def test_a_call_may_break_its_schema_unless_the_tool_is_strict(demo_client, strict, city):
    choice = ask(demo_client, tools=[weather({"enum": ["London"]}, strict=strict)]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": city}


@pytest.mark.parametrize("keyword", ["$ref", "$schema", "$dynamicRef"])
@pytest.mark.parametrize("strict", [True, False])
def test_references_in_a_schema_are_not_fetched(demo_client, keyword, strict):
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/schema.json"
        tools = [weather(parameters={keyword: address}, strict=strict)]
        if strict:
            with pytest.raises(openai.BadRequestError) as refused:
                ask(demo_client, tools=tools)
            assert refused.value.param == "tools.0.function.parameters"
        else:
            ask(demo_client, tools=tools)
        elsewhere.settimeout(0)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


@pytest.mark.parametrize(
    "parameters",
    [
        {"$schema": []},
        {"$schema": {}},
        {"type": "nothing"},
        {"properties": {"city": {"$ref": "#/nowhere"}}},
        {"properties": {"city": {"$ref": "#/hidden"}}, "hidden": {"type": "nothing"}},
        {"properties": {"city": {"pattern": "("}}},
        {"patternProperties": {"((a{1000}){1000}){1000}": {}}},
    ],
)
def test_a_schema_that_cannot_check_arguments_is_refused(demo_client, parameters):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(demo_client, tools=[weather(parameters=parameters, strict=True)])
    assert refused.value.param == "tools.0.function.parameters"
    assert "tools.0.function.parameters (get_weather): " in refused.value.message


@pytest.mark.parametrize(
    "city",
    [
        True,
        {"type": "string", "pattern": "^[^x][a-z]+$"},
        {"type": "string", "format": "email"},
        {"$ref": "#/$defs/a"},
    ],
)
def test_a_strict_schema_may_use_any_valid_keyword(demo_client, city):
    parameters = {"type": "object", "properties": {"city": city}, "$defs": {}}
    if "$ref" in str(city):
        parameters["$defs"] = {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]}}
    parameters["properties"]["days"] = {"type": "array", "items": True}
    ask(demo_client, tools=[weather(parameters=parameters, strict=True)])


def test_a_strict_schema_that_cannot_be_enforced_is_refused(demo_client):
    for city in ({"pattern": "^(?!x)y$", "type": "string"}, {"not": {"multipleOf": 2}}):
        other = weather(name="other", strict=True)
        where = r"tools\.1\.function\.parameters \(get_weather\): it cannot be enforced at /prop"
        for choice in ("auto", "required"):
            tools = [other, weather(city, strict=True)]
            with pytest.raises(openai.BadRequestError, match=where) as refused:
                ask(demo_client, tools=tools, tool_choice=choice)
            assert refused.value.param == "tools.1.function.parameters"
        ask(demo_client, tools=[weather(city)], max_tokens=1)


def test_the_depth_of_a_schema_is_limited(demo_client):
    def nested(levels):
        parameters = {"type": "string"}
        for _ in range(levels // 2):
            parameters = {"type": "object", "properties": {"a": parameters}}
        return [weather(parameters=parameters)]

    assert ask(demo_client, tools=nested(60), max_tokens=1).choices
    with pytest.raises(openai.BadRequestError, match="64 levels") as refused:
        ask(demo_client, tools=nested(70), max_tokens=1)
    assert refused.value.param == "tools.0.function.parameters"


def test_arguments_too_deep_to_parse_are_shown_as_text(demo_client):
    def ask_after_call(depth):
        arguments = '{"a":' * depth + "1" + "}" * depth
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        turns = [*QUESTION, {"role": "assistant", "tool_calls": [call]}]
        return ask(demo_client, turns, max_tokens=1).usage.prompt_tokens

    assert ask_after_call(300) > ask_after_call(1) + 300
    with pytest.raises(openai.BadRequestError) as refused:
        ask_after_call(100_000)
    assert refused.value.code == "context_length_exceeded"


def test_a_message_that_the_sdk_assembled_can_be_sent_back_unchanged(demo_client):
    message = streamed(demo_client, messages=QUESTION, tools=[weather(strict=True)])[0].message
    sent = message.to_dict()
    assert "parsed" in sent
    assert sent["tool_calls"][0]["function"]["parsed_arguments"] == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": sent["tool_calls"][0]["id"], "content": "21 degrees"}
    assert ask(demo_client, [*QUESTION, sent, result], tools=[weather()]).choices[0].message.content


@pytest.mark.parametrize(
    "options",
    [
        {"reasoning_effort": "high"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
    ],
)
def test_a_thought_is_separate_from_the_answer(demo_client, options):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = ask(demo_client, question, **options)
    message = answer.choices[0].message
    assert message.content == "The capital of France is Paris."
    assert message.reasoning_content == message.reasoning == "The user asks for a capital."
    thinking = answer.usage.completion_tokens_details.reasoning_tokens
    assert 0 < thinking < answer.usage.completion_tokens
    chunks = list(ask(demo_client, question, stream=True, **options))
    deltas = [c.choices[0].delta for c in chunks]
    assert "".join(d.content or "" for d in deltas) == message.content
    thoughts = [getattr(d, "reasoning_content", None) or "" for d in deltas]
    assert "".join(thoughts) == message.reasoning


def test_thinking_is_off_unless_it_is_requested(demo_client):
    for options in ({}, {"reasoning_effort": "none"}, {"reasoning_effort": "minimal"}):
        answer = ask(demo_client, **options)
        assert not hasattr(answer.choices[0].message, "reasoning_content")
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_each_of_several_answers_has_its_own_index(demo_client):
    question = [{"role": "user", "content": "Count to 50"}]
    whole = ask(demo_client, question, n=3)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    single = ask(demo_client, question)
    assert whole.usage.prompt_tokens == single.usage.prompt_tokens
    assert whole.usage.completion_tokens >= 3 * 50
    chunks = list(ask(demo_client, question, n=3, stream=True))
    for index in range(3):
        choices = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert (choices[0].delta.role, choices[0].delta.content) == ("assistant", "")
        assert [c.finish_reason for c in choices if c.finish_reason] == ["stop"]
        text = "".join(c.delta.content or "" for c in choices)
        assert text == whole.choices[index].message.content
