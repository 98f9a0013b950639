"""Structured output over HTTP, mostly by a model of random weights, which writes nothing right."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

import anthropic
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

MODEL = "random-weights"  # the name of the folder with random weights
ASK = [{"role": "user", "content": "Make JSON with name Ann and age 7."}]
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Pet(BaseModel):
    kind: str = Field(pattern="^[a-z]{1,6}$")
    weight: float


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int
    colour: Colour
    pet: Pet | None
    tags: list[str] = Field(max_length=2)


SCHEMAS = {
    "object": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"const": 7}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"enum": ["red", 1, None]}, "minItems": 2, "maxItems": 4},
    "alternatives": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "boolean"}]},
    "definitions": {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/leaf"}, "right": {"$ref": "#/$defs/leaf"}},
        "required": ["left", "right"],
        "additionalProperties": False,
        "$defs": {"leaf": {"type": "string", "pattern": "^[A-C]+$", "maxLength": 4}},
    },
    "bounds": {"type": "integer", "minimum": 3, "maximum": 20},
}


def by_schema(schema):
    return {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": schema, "strict": True},
    }


def weather(name="get_weather", **more):
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "unit": {"enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    }
    function = {"name": name, "description": "Get the weather", "parameters": parameters, **more}
    return {"type": "function", "function": function}


def check_call(call, name="get_weather"):
    assert call.function.name == name
    jsonschema.validate(json.loads(call.function.arguments), weather()["function"]["parameters"])


def text(client, *, stream=False, messages=ASK, max_tokens=120, **options):
    """Returns the text and the reason for the end of an answer."""
    if not stream:
        made = client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=max_tokens, **options
        )
        (choice,) = made.choices
        return choice.message.content, choice.finish_reason
    parts, reason = [], None
    for chunk in client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=max_tokens, stream=True, **options
    ):
        parts.append(chunk.choices[0].delta.content or "")
        reason = chunk.choices[0].finish_reason
    return "".join(parts), reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_valid_by_its_schema(client, name, stream):
    schema = SCHEMAS[name]

    def ask(seed):
        return text(client, stream=stream, seed=seed, response_format=by_schema(schema))

    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(ask, range(10))]
    for answer, reason in answers:
        jsonschema.validate(json.loads(answer), schema)
        assert reason == "stop"


def test_the_sdk_parses_every_answer_into_its_model(client):
    for seed in range(6):
        made = client.chat.completions.parse(
            model=MODEL, messages=ASK, response_format=Person, max_tokens=200, seed=seed
        )
        assert isinstance(made.choices[0].message.parsed, Person)
        with client.chat.completions.stream(
            model=MODEL, messages=ASK, response_format=Person, max_tokens=200, seed=seed
        ) as stream:
            parsed = stream.get_final_completion().choices[0].message.parsed
        assert parsed == made.choices[0].message.parsed


def test_an_answer_is_complete_in_the_least_number_of_tokens(client):
    with pytest.raises(openai.BadRequestError) as error:
        text(client, max_tokens=3, response_format=by_schema(SCHEMAS["object"]))
    assert error.value.param == "max_tokens"
    least = int(re.search(r"allows has (\d+)", error.value.message)[1])
    for seed in range(4):
        answer, _ = text(
            client, max_tokens=least, seed=seed, response_format=by_schema(SCHEMAS["object"])
        )
        jsonschema.validate(json.loads(answer), SCHEMAS["object"])


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"response_format": {"type": "json_object"}}, r"(?s)\{.*\}"),
        ({"guided_regex": "[ab]{2,5}(x|yz)"}, "[ab]{2,5}(x|yz)"),
        ({"structured_outputs": {"regex": r"\d{4}-\d\d"}}, r"\d{4}-\d\d"),
        ({"guided_choice": ["red", "reddish", "blue"]}, "red|reddish|blue"),
        ({"structured_outputs": {"choice": ["only this"]}}, "only this"),
        ({"guided_json": json.dumps(SCHEMAS["bounds"])}, r"\d+"),
        ({"structured_outputs": {"json": {"type": "boolean"}}}, "true|false"),
        ({"structured_outputs": {"json_object": True}}, r"(?s)\{.*\}"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_texts_have_the_demanded_form_under_every_name(http, path, fields, pattern):
    prompt = {"messages": ASK} if "chat" in path else {"prompt": "Say it:"}
    for seed in range(3):
        body = {**prompt, "seed": seed, "max_tokens": 60, **fields}
        response = http.post(path, json=body)
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        answer = choice["text"] if "text" in choice else choice["message"]["content"]
        assert re.fullmatch(pattern, answer)
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("field", ["guided_grammar", "structured_outputs"])
def test_a_grammar_makes_every_answer_a_beginning_of_its_texts(http, field):
    grammar = 'start: "<" ITEM ("," ITEM)* ">"\nITEM: /[a-c]+/'
    demand = grammar if field == "guided_grammar" else {"grammar": grammar}
    for seed in range(3):
        body = {"messages": ASK, "seed": seed, "max_tokens": 40, field: demand}
        (choice,) = http.post("/v1/chat/completions", json=body).json()["choices"]
        if choice["finish_reason"] == "stop":
            assert re.fullmatch("<[a-c]+(,[a-c]+)*>", choice["message"]["content"])
        else:
            assert re.fullmatch("<([a-c]+,)*[a-c]*>?", choice["message"]["content"] or "<")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "several"),
    [
        ("required", True),
        ({"type": "function", "function": {"name": "get_weather"}}, False),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "get_weather"}}],
                },
            },
            True,
        ),
    ],
)
def test_required_calls_are_made_with_valid_arguments(client, choice, several, stream):
    tools = [weather(), weather("other", parameters={"type": "object", "properties": {}})]
    for seed in range(5):
        options = {
            "model": MODEL,
            "messages": QUESTION,
            "tools": tools,
            "tool_choice": choice,
            "seed": seed,
            "max_tokens": 100,
        }
        if stream:
            with client.chat.completions.stream(**options) as events:
                answer = events.get_final_completion().choices[0]
        else:
            answer = client.chat.completions.create(**options).choices[0]
        calls = answer.message.tool_calls
        assert answer.finish_reason == "tool_calls"
        assert not answer.message.content
        assert several or len(calls) == 1
        for call in calls:
            if call.function.name == "other":
                assert choice == "required"
                assert json.loads(call.function.arguments) == {}
            else:
                check_call(call)


def test_one_call_at_most_is_made_if_calls_may_not_be_parallel(client):
    for seed in range(5):
        made = client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            tools=[weather()],
            tool_choice="required",
            parallel_tool_calls=False,
            seed=seed,
            max_tokens=100,
        )
        (call,) = made.choices[0].message.tool_calls
        check_call(call)


def test_the_arguments_of_strict_tools_are_valid_whenever_they_are_called(demo_client):
    """The demo model calls the tool by itself, and knows nothing of its second argument."""
    for seed in range(5):
        made = demo_client.chat.completions.create(
            model="demo", messages=QUESTION, tools=[weather(strict=True)], seed=seed
        )
        (call,) = made.choices[0].message.tool_calls
        check_call(call)
        assert json.loads(call.function.arguments)["city"] == "Paris"


def test_an_answer_that_is_valid_anyway_stays_the_same(demo_client):
    schema = SCHEMAS["object"]
    for seed in range(5):
        options = {"model": "demo", "messages": ASK, "seed": seed, "max_tokens": 100}
        options["extra_body"] = {"return_token_ids": True}
        free = demo_client.chat.completions.create(**options)
        made = demo_client.chat.completions.create(**options, response_format=by_schema(schema))
        try:
            jsonschema.validate(json.loads(free.choices[0].message.content), schema)
        except (ValueError, jsonschema.ValidationError):
            continue
        assert made.choices[0].token_ids == free.choices[0].token_ids
        assert made.diffusion["denoising_steps"] == free.diffusion["denoising_steps"]
        assert made.diffusion["corrections"] == 0


def test_a_constraint_holds_behind_a_thought(demo_client, client):
    for each, model in ((demo_client, "demo"), (client, MODEL)):
        for seed in range(3):
            made = each.chat.completions.create(
                model=model,
                messages=ASK,
                seed=seed,
                max_tokens=150,
                reasoning_effort="high",
                response_format=by_schema(SCHEMAS["object"]),
            )
            content = json.loads(made.choices[0].message.content)
            jsonschema.validate(content, SCHEMAS["object"])


def test_a_constraint_holds_with_the_other_options(client):
    schema = SCHEMAS["object"]
    made = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        n=3,
        seed=1,
        logprobs=True,
        top_logprobs=2,
        logit_bias={"10": 100},
        max_tokens=90,
        response_format=by_schema(schema),
        extra_body={"min_tokens": 12, "repetition_penalty": 1.3},
    )
    assert len(made.choices) == 3
    for choice in made.choices:
        jsonschema.validate(json.loads(choice.message.content), schema)
        assert "".join(each.token for each in choice.logprobs.content) == choice.message.content


def test_a_stop_string_wins_over_a_constraint(client):
    answer, reason = text(
        client, stop=['"age"'], seed=1, response_format=by_schema(SCHEMAS["object"])
    )
    assert reason == "stop"
    assert '"age"' not in answer
    assert answer.startswith("{")


def test_text_or_calls_are_made_if_a_format_and_tools_are_given(demo_client):
    for messages in (ASK, QUESTION):
        made = demo_client.chat.completions.create(
            model="demo",
            messages=messages,
            seed=0,
            max_tokens=120,
            tools=[weather(strict=True)],
            response_format=by_schema(SCHEMAS["object"]),
        )
        message = made.choices[0].message
        if message.tool_calls:
            check_call(message.tool_calls[0])
        else:
            jsonschema.validate(json.loads(message.content), SCHEMAS["object"])


def test_responses_have_the_demanded_format(client):
    for seed in range(4):
        made = client.responses.parse(
            model=MODEL,
            input="Make JSON",
            text_format=Person,
            max_output_tokens=200,
            extra_body={"seed": seed},
        )
        assert isinstance(made.output_parsed, Person)
        assert made.text.format.type == "json_schema"
    made = client.responses.create(
        model=MODEL,
        input="Make JSON",
        text={"format": {"type": "json_object"}},
        max_output_tokens=80,
    )
    assert isinstance(json.loads(made.output_text), dict)


def test_responses_make_required_calls(client):
    function = weather()["function"]
    grouped = {"type": "namespace", "name": "group", "tools": [{"type": "function", **function}]}
    for tool, choice in (
        ({"type": "function", **function}, "required"),
        ({"type": "function", **function}, {"type": "function", "name": "get_weather"}),
        (grouped, {"type": "function", "name": "get_weather"}),
        (
            {"type": "function", **function},
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "get_weather"}],
            },
        ),
    ):
        made = client.responses.create(
            model=MODEL,
            input="What is the weather in Paris?",
            tools=[tool],
            tool_choice=choice,
            max_output_tokens=120,
        )
        assert made.output
        for item in made.output:
            assert (item.type, item.name) == ("function_call", "get_weather")
            jsonschema.validate(json.loads(item.arguments), function["parameters"])


def test_messages_have_the_demanded_format_and_make_required_calls(server):
    schema = SCHEMAS["object"]
    tool = {"name": "get_weather", "input_schema": weather()["function"]["parameters"]}
    turn = {"role": "user", "content": "What is the weather in Paris?"}
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as sdk:
        for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
            message = sdk.messages.create(
                model=MODEL, max_tokens=120, messages=[turn], tools=[tool], tool_choice=choice
            )
            assert message.stop_reason == "tool_use"
            for block in message.content:
                assert block.type == "tool_use"
                jsonschema.validate(block.input, tool["input_schema"])
        message = sdk.messages.create(
            model=MODEL,
            max_tokens=120,
            messages=[turn],
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
        jsonschema.validate(json.loads(message.content[0].text), schema)


def test_a_title_of_a_claude_code_session_has_its_schema(server):
    """Claude Code sends this when a session begins."""
    title = {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
        "additionalProperties": False,
    }
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as sdk:
        for seed in range(3):
            with sdk.messages.stream(
                model=MODEL,
                max_tokens=60,
                system="Generate a concise title.",
                messages=[{"role": "user", "content": [{"type": "text", "text": "<session>x"}]}],
                tools=[],
                output_config={
                    "effort": "high",
                    "format": {"type": "json_schema", "schema": title},
                },
                extra_body={"seed": seed},
            ) as stream:
                message = stream.get_final_message()
            (block,) = message.content
            jsonschema.validate(json.loads(block.text), title)
            assert message.stop_reason == "end_turn"


def test_a_message_of_codex_by_an_output_schema_is_json_or_calls(client):
    """`codex exec --output-schema` sends this, with its tools."""
    run = {"type": "function", "name": "exec_command", "strict": False}
    run["parameters"] = {
        "type": "object",
        "properties": {"cmd": {"type": "string", "maxLength": 20}},
        "required": ["cmd"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "name": "codex_output_schema", "strict": True}
    schema = SCHEMAS["object"]
    for seed in range(6):
        with client.responses.stream(
            model=MODEL,
            input=[{"type": "message", "role": "user", "content": "Make JSON"}],
            tools=[run, {"type": "web_search"}],
            tool_choice="auto",
            parallel_tool_calls=True,
            reasoning={"summary": "auto"},
            store=False,
            include=["reasoning.encrypted_content"],
            text={"format": {**shape, "schema": schema}},
            max_output_tokens=200,
            extra_body={"seed": seed},
        ) as stream:
            response = stream.get_final_response()
        assert response.status == "completed"
        for item in response.output:
            if item.type == "function_call":
                jsonschema.validate(json.loads(item.arguments), run["parameters"])
            elif item.type == "message":
                jsonschema.validate(json.loads(item.content[0].text), schema)


def test_a_new_worker_gets_the_constraints_that_its_requests_need(start_server):
    server = start_server(EASEL_MODEL="demo").wait_until_ready()
    grammar = {"structured_outputs": {"grammar": 'start: "a"+ "b"'}}
    demands = [{"response_format": by_schema(SCHEMAS["object"])}, grammar]

    def ask(demand):
        body = {"messages": ASK, "seed": 1, "max_tokens": 60, **demand}
        (choice,) = server.http.post("/v1/chat/completions", json=body).json()["choices"]
        return choice["message"]["content"]

    before = [ask(demand) for demand in demands]
    server.kill_worker()
    server.wait_until_ready()
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(ask, demands)] == before
    jsonschema.validate(json.loads(before[0]), SCHEMAS["object"])
