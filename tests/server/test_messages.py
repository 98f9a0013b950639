"""Anthropic's Messages API through the official SDK, from the trained demo model."""

import json

import anthropic
import pytest
from anthropic.types import Message, shared

from tests.counting import count
from tests.server.test_errors import check_retry_header

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
COUNT = [{"role": "user", "content": count(3)}]
WEATHER = {
    "name": "get_weather",
    "description": "Get the weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
TURN = {"model": "demo", "max_tokens": 100, "messages": CAPITAL}


@pytest.fixture(scope="module")
def sdk(demo_server):
    with anthropic.Anthropic(base_url=demo_server.url, api_key="none", max_retries=0) as client:
        yield client


def ask(sdk, messages=CAPITAL, **options):
    extra = {"seed": 0, **options.pop("extra_body", {})}
    fields = {"model": "demo", "max_tokens": 200, "messages": messages, **options}
    return sdk.messages.create(**fields, extra_body=extra)


def streamed(sdk, messages=CAPITAL, **options):
    """Returns an answer that the SDK assembled from a stream, and the events of an equal stream."""
    fields = {"model": "demo", "max_tokens": 200, "messages": messages, **options}
    raw = list(sdk.messages.create(**fields, stream=True, extra_body={"seed": 0}))
    with sdk.messages.stream(**fields, extra_body={"seed": 0}) as stream:
        return stream.get_final_message(), raw


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def same(message, other):
    """Returns whether two answers are equal except for their ids, which are random."""

    def without_ids(each):
        return [{**block.to_dict(), "id": None} for block in each.content]

    return (without_ids(message), message.stop_reason, message.stop_sequence) == (
        without_ids(other),
        other.stop_reason,
        other.stop_sequence,
    )


def test_an_answer_is_a_message(sdk):
    message = ask(sdk)
    Message.model_validate(message.to_dict(), strict=True)
    assert message.id.startswith("msg_")
    assert (message.role, message.model) == ("assistant", "demo")
    assert [block.type for block in message.content] == ["text"]
    assert text_of(message) == "The capital of France is Paris."
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens > 0
    assert message.to_dict()["diffusion"]["blocks"] >= 1
    assert message._request_id.startswith("req-")


def test_a_stream_gives_the_same_message_in_ordered_events(sdk):
    message, raw = streamed(sdk, COUNT)
    assert same(message, ask(sdk, COUNT))
    assert [event.type for event in raw if event.type != "content_block_delta"] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    deltas = [event for event in raw if event.type == "content_block_delta"]
    assert len(deltas) > 1, "a delta for each block"
    assert {(event.index, event.delta.type) for event in deltas} == {(0, "text_delta")}
    assert raw[-2].usage.output_tokens == message.usage.output_tokens
    assert raw[-2].to_dict()["diffusion"]["blocks"] == len(deltas)


@pytest.mark.parametrize(
    "form", [lambda *a, **o: ask(*a, **o), lambda *a, **o: streamed(*a, **o)[0]]
)
def test_the_model_answers_when_it_gets_the_result_of_a_tool(sdk, form):
    call = form(sdk, QUESTION, tools=[WEATHER])
    (block,) = call.content
    assert call.stop_reason == "tool_use"
    assert (block.type, block.name, block.input) == ("tool_use", "get_weather", {"city": "Paris"})
    assert block.id.startswith("toolu_")
    result = {
        "type": "tool_result",
        "tool_use_id": block.id,
        "content": [{"type": "text", "text": '{"temperature": 21, "condition": "sunny"}'}],
    }
    turns = [*QUESTION, call.to_param(), {"role": "user", "content": [result]}]
    answer = form(sdk, turns, tools=[WEATHER])
    assert text_of(answer) == "It is 21 degrees and sunny in Paris."
    assert answer.stop_reason == "end_turn"


def test_a_streamed_call_is_a_separate_block_with_its_input_as_json(sdk):
    _, raw = streamed(sdk, QUESTION, tools=[WEATHER])
    start, delta, stop = raw[1:-2]
    assert (start.type, start.content_block.type) == ("content_block_start", "tool_use")
    assert start.content_block.input == {}
    assert json.loads(delta.delta.partial_json) == {"city": "Paris"}
    assert stop.type == "content_block_stop"


def test_no_tool_is_called_without_tools_or_with_the_choice_none(sdk):
    for options in ({}, {"tools": [WEATHER], "tool_choice": {"type": "none"}}):
        message = ask(sdk, QUESTION, **options)
        assert text_of(message) == "I cannot look up the weather without a tool."
    message = ask(sdk, QUESTION, tools=[WEATHER], tool_choice={"type": "auto"})
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize(("strict", "city"), [(True, "London"), (False, "Paris")])
def test_a_call_may_break_its_schema_unless_the_tool_is_strict(sdk, strict, city):
    london = json.loads(json.dumps({**WEATHER, "strict": strict}))
    london["input_schema"]["properties"]["city"]["enum"] = ["London"]
    message = ask(sdk, QUESTION, tools=[london])
    assert (message.stop_reason, message.content[-1].input) == ("tool_use", {"city": city})
    assert same(message, streamed(sdk, QUESTION, tools=[london])[0])


@pytest.mark.parametrize(
    "thinking", [{"type": "adaptive"}, {"type": "enabled", "budget_tokens": 1024}]
)
def test_a_thought_is_a_block_before_the_answer_and_can_be_sent_back(sdk, thinking):
    message, raw = streamed(sdk, thinking=thinking)
    assert same(message, ask(sdk, thinking=thinking))
    thought, text = message.content
    assert (thought.type, thought.thinking) == ("thinking", "The user asks for a capital.")
    assert thought.signature
    assert text.text == "The capital of France is Paris."
    kinds = [event.delta.type for event in raw if event.type == "content_block_delta"]
    assert list(dict.fromkeys(kinds)) == ["thinking_delta", "signature_delta", "text_delta"]
    starts = [event.content_block.type for event in raw if event.type == "content_block_start"]
    assert starts == ["thinking", "text"]
    thinking_tokens = message.usage.output_tokens_details.thinking_tokens
    assert 0 < thinking_tokens < message.usage.output_tokens
    turns = [*CAPITAL, message.to_param(), {"role": "user", "content": "Hello!"}]
    assert text_of(ask(sdk, turns, thinking=thinking)) == "Hello! How can I help you?"


def test_the_text_of_a_thought_can_be_omitted(sdk):
    thinking = {"type": "adaptive", "display": "omitted"}
    message, raw = streamed(sdk, thinking=thinking)
    assert same(message, ask(sdk, thinking=thinking))
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.content[0].thinking, bool(message.content[0].signature)) == ("", True)
    kinds = [event.delta.type for event in raw if event.type == "content_block_delta"]
    assert list(dict.fromkeys(kinds)) == ["signature_delta", "text_delta"]


def test_thinking_is_off_unless_it_is_requested(sdk):
    for options in ({}, {"thinking": {"type": "disabled"}}):
        assert ask(sdk, **options).usage.output_tokens_details.thinking_tokens == 0


def test_a_stop_sequence_ends_the_answer_and_is_reported(sdk):
    for message in (
        ask(sdk, COUNT, stop_sequences=["xyz", ", 9"]),
        streamed(sdk, COUNT, stop_sequences=["xyz", ", 9"])[0],
    ):
        assert text_of(message) == "1, 2, 3, 4, 5, 6, 7, 8"
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", ", 9")


def test_max_tokens_cuts_the_answer(sdk):
    for message in (ask(sdk, COUNT, max_tokens=5), streamed(sdk, COUNT, max_tokens=5)[0]):
        assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 5)


def test_a_call_that_max_tokens_cuts_off_is_not_part_of_the_answer(sdk):
    whole = ask(sdk, QUESTION, tools=[WEATHER])
    contents = []
    for cut in range(1, whole.usage.output_tokens):
        message, _ = streamed(sdk, QUESTION, tools=[WEATHER], max_tokens=cut)
        assert same(message, ask(sdk, QUESTION, tools=[WEATHER], max_tokens=cut))
        assert message.stop_reason == "max_tokens"
        contents.append(message.content)
    assert [] in contents
    calls = [block for content in contents for block in content if block.type == "tool_use"]
    assert all(call.input == {"city": "Paris"} for call in calls)


def test_an_answer_that_fills_the_context_has_a_stop_reason_for_it(sdk):
    prompt = [{"role": "user", "content": "a " * 800}]
    tokens = sdk.messages.count_tokens(model="demo", messages=prompt).input_tokens
    (model,) = sdk.models.list()
    extra = {"ignore_eos": True}
    message = ask(sdk, prompt, max_tokens=100_000, extra_body=extra, timeout=60)
    assert message.stop_reason == "model_context_window_exceeded"
    assert tokens + message.usage.output_tokens == model.max_input_tokens


def test_usage_counts_cached_tokens_separately(sdk):
    turns = [{"role": "user", "content": "Repeat after me: " + "apple " * 40}]
    first = ask(sdk, turns).usage
    again, raw = streamed(sdk, turns)
    assert again.usage.cache_read_input_tokens > 0
    total = sdk.messages.count_tokens(model="demo", messages=turns).input_tokens
    for usage in (first, again.usage):
        assert usage.input_tokens + usage.cache_read_input_tokens == total
        assert usage.cache_creation_input_tokens == 0
        assert usage.input_tokens > 0  # Claude Code would keep the number of the start instead of 0
    # How much is cached is not known yet when the stream begins.
    at_start = raw[0].message.usage
    assert (at_start.input_tokens, at_start.cache_read_input_tokens) == (total, 0)
    assert at_start.output_tokens == 0


def test_counted_tokens_are_those_of_the_usage(sdk):
    fields = {
        "messages": QUESTION,
        "system": [{"type": "text", "text": "Be brief."}],
        "tools": [WEATHER],
        "thinking": {"type": "adaptive"},
    }
    counted = sdk.messages.count_tokens(model="demo", **fields).input_tokens
    usage = ask(sdk, **fields).usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted
    assert counted > sdk.messages.count_tokens(model="demo", messages=QUESTION).input_tokens


def test_models_are_listed_in_the_dialect_of_the_client(sdk, demo_server):
    (model,) = sdk.models.list()
    assert (model.id, model.type, model.display_name) == ("demo", "model", "demo")
    assert model.created_at.year >= 2025
    assert sdk.models.retrieve("demo") == model
    assert list(sdk.models.list(after_id="demo")) == []
    with pytest.raises(anthropic.NotFoundError):
        sdk.models.retrieve("nope")
    assert demo_server.http.get("/v1/models").json()["object"] == "list"
    assert demo_server.http.get("/v1/models/demo").json()["object"] == "model"


def envelope(response):
    """Check the shape that every error of this dialect has. Returns the error."""
    body = response.json()
    assert sorted(body) == ["error", "request_id", "type"]
    assert body["type"] == "error"
    assert sorted(body["error"]) == ["message", "type"]
    assert body["error"]["message"]
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    check_retry_header(response)
    return body["error"]


def text(**fields):
    return {"type": "text", "text": "hi", **fields}


def turn(*blocks, role="user"):
    return {"messages": [*CAPITAL, {"role": role, "content": list(blocks)}]}


IMAGE = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [*CAPITAL, {"role": "assistant", "content": "The"}]}, "messages"),
        (turn(USE), "messages.1.content"),
        (turn({"type": "image", "source": IMAGE}, role="assistant"), "messages.1.content"),
        (
            turn({"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}),
            "messages.1.content.0.source.type",
        ),
        (turn({"type": "tool_result", "tool_use_id": "toolu_9"}), "messages"),
        ({"system": 7}, "system"),
        ({"system": [{"type": "image", "source": IMAGE}]}, "system.0"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"stop_sequences": ["a"] * 65}, "stop_sequences"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "adaptive", "display": "updates"}}, "thinking.display"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        (
            {"tools": [{"name": "f", "input_schema": {"type": "objekt"}, "strict": True}]},
            "tools.0.input_schema",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "output_config.format.schema",
        ),
        ({"output_format": {"type": "text"}}, "output_format.type"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"colour": "red"}, "Unknown field: colour"),
    ],
)
def test_a_refusal_names_the_field_in_the_envelope_of_anthropic(demo_server, change, named):
    body = {name: value for name, value in {**TURN, **change}.items() if value is not None}
    response = demo_server.http.post("/v1/messages", json=body)
    error = envelope(response)
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    shared.ErrorResponse.model_validate(response.json(), strict=True)
    assert error["message"].startswith((f"{named}:", f"{named}.", f"{named} ("))


def test_a_request_needs_no_model(demo_server):
    body = {name: value for name, value in TURN.items() if name != "model"}
    answer = demo_server.http.post("/v1/messages", json=body)
    assert (answer.status_code, answer.json()["model"]) == (200, "demo")
    del body["max_tokens"]
    assert demo_server.http.post("/v1/messages/count_tokens", json=body).status_code == 200


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_both_endpoints_refuse_requests_in_the_same_way(demo_server, path):
    http = demo_server.http
    limit = {"max_tokens": 9} if path == "/v1/messages" else {}
    other = {**limit, "model": "claude-sonnet-5", "messages": CAPITAL}
    wrong_model = http.post(path, json=other)
    assert (wrong_model.status_code, envelope(wrong_model)["type"]) == (404, "not_found_error")
    no_json = http.post(path, content=b"{")
    assert (no_json.status_code, envelope(no_json)["type"]) == (400, "invalid_request_error")
    wrong_method = http.get(path)
    assert wrong_method.status_code == 405
    assert envelope(wrong_method)["type"] == "invalid_request_error"
    unknown = http.post(path, json={**other, "model": "demo", "max_tokenz": 5})
    assert envelope(unknown)["message"] == "Unknown field: max_tokenz."


def test_a_path_that_does_not_exist_is_answered_in_its_dialect(demo_server):
    http = demo_server.http
    response = http.post("/v1/messages/batches", json={})
    assert (response.status_code, envelope(response)["type"]) == (404, "not_found_error")
    headers = {"anthropic-version": "2023-06-01"}
    model = http.get("/v1/models/nope", headers=headers)
    assert (model.status_code, envelope(model)["type"]) == (404, "not_found_error")
    chat = http.post("/v1/chat/completions", json={"messages": []}, headers=headers)
    assert "code" in chat.json()["error"]


def test_the_refusal_of_too_long_a_prompt_has_the_words_that_clients_look_for(sdk):
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+ m"):
        ask(sdk, [{"role": "user", "content": "a " * 9000}])


def test_a_body_over_the_limit_is_refused_in_the_envelope(limited_server):
    huge = {**TURN, "system": "x" * 3000}
    response = limited_server.http.post("/v1/messages", json=huge)
    assert (response.status_code, envelope(response)["type"]) == (413, "request_too_large")


def claude_code(*turns):
    """Returns a request as Claude Code sends it, but shorter and with a seed."""
    kept = {"type": "ephemeral"}
    return {
        "model": "demo",
        "max_tokens": 32000,
        "seed": 0,
        "stream": True,
        "system": [
            {
                "type": "text",
                "text": f"x-anthropic-billing-header: cc_version=2.1; cch={len(turns)};",
            },
            {"type": "text", "text": "You are Claude Code.", "cache_control": kept},
            {"type": "text", "text": "Be brief.", "cache_control": {**kept, "ttl": "1h"}},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": ""},
                    {"type": "text", "text": QUESTION[0]["content"], "cache_control": kept},
                ],
            },
            *turns,
        ],
        "tools": [
            {**WEATHER, "eager_input_streaming": True},
            {"name": "Read", "description": "Read a file", "input_schema": {"type": "object"}},
        ],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": '{"device_id":"0","session_id":"0"}'},
        "diagnostics": {"previous_message_id": None},
    }


def post_as_claude_code(server, body):
    """Returns the events of the streamed answer. Their names must be their types."""
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "x-api-key": "none",
        "authorization": "Bearer none",
        "x-app": "cli",
    }
    response = server.http.post("/v1/messages?beta=true", json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for part in response.text.strip().split("\n\n"):
        name, data = part.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def test_requests_of_claude_code_are_answered_and_their_prefix_is_cached(demo_server):
    assert demo_server.http.head("/").status_code == 200
    first = post_as_claude_code(demo_server, claude_code())
    assert [event["type"] for event in first[:2]] == ["message_start", "ping"]
    assert first[-2]["delta"]["stop_reason"] in ("end_turn", "tool_use")
    call = {**USE, "name": "get_weather", "input": {"city": "Paris"}}
    turns = [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I need the weather.", "signature": "easel"},
                {"type": "redacted_thinking", "data": "AAAA"},
                {"type": "text", "text": "\n"},
                call,
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": call["id"],
                    "content": '{"temperature": 21, "condition": "sunny"}',
                    "is_error": False,
                },
            ],
        },
    ]
    second = post_as_claude_code(demo_server, claude_code(*turns))
    usage = second[-2]["usage"]
    assert usage["cache_read_input_tokens"] > usage["input_tokens"] > 0
    answer = [e["delta"].get("text", "") for e in second if e["type"] == "content_block_delta"]
    assert "".join(answer) == "It is 21 degrees and sunny in Paris."
    # Some versions send a reminder among the messages, with the role of the system.
    reminder = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    third = post_as_claude_code(demo_server, claude_code(*turns, reminder))
    assert third[-1]["type"] == "message_stop"


def test_the_tool_runner_of_the_sdk_works_without_threads(sdk):
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the weather

        Args:
            city: City name
        """
        return '{"temperature": 21, "condition": "sunny"}'

    runner = sdk.beta.messages.tool_runner(
        model="demo",
        max_tokens=100,
        tools=[get_weather],
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        extra_body={"seed": 0},
    )
    (text,) = runner.until_done().content
    assert text.text == "It is 21 degrees and sunny in Paris."
