"""What has no effect is accepted and named; what would promise something is refused."""

import json

import pytest

from app.dialects.anthropic.schema import CountTokensRequest, MessagesRequest
from app.dialects.body import parse
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.completions.schema import CompletionRequest
from app.dialects.responses.schema import ResponseRequest
from app.errors import BadRequest

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"prompt": "hi"}
RESPONSE = {"input": "hi"}
MESSAGES = {**CHAT, "max_tokens": 9}
REQUESTS = [
    (ChatCompletionRequest, CHAT),
    (CompletionRequest, COMPLETION),
    (ResponseRequest, RESPONSE),
    (MessagesRequest, MESSAGES),
    (CountTokensRequest, CHAT),
]
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def read(schema, body):
    """Returns the parsed body and the names of its ignored fields."""
    return parse(json.dumps(body).encode(), schema)


@pytest.mark.parametrize(("schema", "body"), REQUESTS)
def test_null_is_the_same_as_an_absent_field(schema, body):
    required = {name for name, field in schema.model_fields.items() if field.is_required()}
    optional = {*schema.model_fields, *schema.neutral, *schema.hints, "colour"} - required
    value, ignored = read(schema, {**body, **dict.fromkeys(optional)})
    assert ignored == []
    assert value == (read(schema, body))[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1.0},
        {"repetition_penalty": 1},
        {"min_p": 0},
        {"skip_special_tokens": True},
        {"n": 1.0},
        {"top_k": -1.0},
        {"seed": 7.0},
        {"max_tokens": -1},
        {"max_tokens": 5.0},
        {"stop": ""},
        {"stop": []},
        {"stop": [""]},
        {"tools": None, "tool_choice": "auto"},
        {"tools": [], "tool_choice": "auto"},
        {"tool_choice": "auto"},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": None}},
        {"logit_bias": {}},
        {"response_format": {"type": "text"}},
        {"store": False},
        {"guided_json": None},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "system", "content": ""}, *CHAT["messages"]]},
        {"messages": [*CHAT["messages"], {"role": "assistant", "content": "", "tool_calls": None}]},
    ],
)
def test_a_value_that_asks_for_nothing_is_accepted(fields):
    _, ignored = read(ChatCompletionRequest, {**CHAT, **fields})
    assert ignored == []


@pytest.mark.parametrize(
    ("schema", "body", "fields"),
    [
        (
            ChatCompletionRequest,
            CHAT,
            {
                "verbosity": "high",
                "service_tier": "flex",
                "metadata": [{"a": [1]}],
                "prompt_cache_key": 7,
                "prompt_cache_retention": "24h",
                "user": "me",
            },
        ),
        (CompletionRequest, COMPLETION, {"user": "me", "cache_prompt": True}),
        (ResponseRequest, RESPONSE, {"service_tier": "priority", "max_tool_calls": 3}),
        (
            MessagesRequest,
            MESSAGES,
            {
                "metadata": {"user_id": "me", "more": 1},
                "service_tier": "auto",
                "speed": "fast",
                "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
            },
        ),
    ],
)
def test_a_hint_is_ignored_and_named(schema, body, fields):
    _, ignored = read(schema, {**body, **fields})
    assert sorted(ignored) == sorted(fields)


@pytest.mark.parametrize(
    ("schema", "body", "names"),
    [
        (
            ChatCompletionRequest,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
                            {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
                        ],
                        "timestamp": 7,
                    },
                    {
                        "role": "assistant",
                        "content": "",
                        "reasoning_content": "hm",
                        "provider_specific_fields": {"reasoning_content": "hm"},
                        "reasoning_details": [{"type": "reasoning.text"}],
                        "tool_calls": [{**CALL, "extra_content": {"google": {}}, "index": 0}],
                    },
                    {"role": "tool", "tool_call_id": "1", "content": "x", "is_error": True},
                ],
                "tools": [{"type": "function", "function": {**FUNCTION, "color": 1}, "more": 2}],
            },
            [
                "messages.timestamp",
                "messages.content.cache_control",
                "messages.provider_specific_fields",
                "messages.reasoning_details",
                "messages.tool_calls.extra_content",
                "messages.tool_calls.index",
                "messages.is_error",
                "tools.more",
                "tools.function.color",
            ],
        ),
        (
            ResponseRequest,
            {
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "input_image",
                                "image_url": "data:image/png;base64,",
                                "detail": "high",
                            }
                        ],
                        "phase": "commentary",
                    }
                ],
                "text": {"verbosity": "low"},
                "reasoning": {"mode": "pro"},
            },
            ["input.phase", "input.content.detail", "text.verbosity", "reasoning.mode"],
        ),
        (
            MessagesRequest,
            {
                "max_tokens": 9,
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "hi", "citations": [1]}],
                        "uuid": "x",
                    }
                ],
                "tools": [{"name": "f", "input_schema": {}, "defer_loading": True}],
                "thinking": {"type": "enabled", "budget_tokens": 1024},
            },
            [
                "messages.uuid",
                "messages.content.citations",
                "tools.defer_loading",
            ],
        ),
    ],
)
def test_keys_of_other_providers_are_ignored_and_named_once(schema, body, names):
    _, ignored = read(schema, body)
    assert sorted(ignored) == sorted(names)


@pytest.mark.parametrize(
    ("schema", "body", "fields"),
    [
        (ChatCompletionRequest, CHAT, {"response_format": {"type": "grammar"}}),
        (ChatCompletionRequest, CHAT, {"tool_choice": "any"}),
        (ChatCompletionRequest, CHAT, {"tool_choice": {"type": "custom", "custom": {}}}),
        (ChatCompletionRequest, CHAT, {"structured_outputs": {"structural_tag": "x"}}),
        (ChatCompletionRequest, CHAT, {"store": True}),
        (ChatCompletionRequest, CHAT, {"modalities": ["text", "audio"]}),
        (ChatCompletionRequest, CHAT, {"max_token": 5}),
        (CompletionRequest, COMPLETION, {"best_of": 2}),
        (CompletionRequest, COMPLETION, {"length_penalty": 2.0}),
        (CompletionRequest, COMPLETION, {"use_beam_search": 1}),
        (ResponseRequest, RESPONSE, {"background": True}),
        (ResponseRequest, RESPONSE, {"text": {"format": {"type": "grammar"}}}),
        (MessagesRequest, MESSAGES, {"mcp_servers": [{}]}),
        (MessagesRequest, MESSAGES, {"output_config": {"format": {}}}),
        (MessagesRequest, MESSAGES, {"tool_choice": {"type": "tool"}}),
        (MessagesRequest, MESSAGES, {"tool_choice": {"type": "required"}}),
    ],
)
def test_a_promise_that_would_be_broken_is_refused_by_name(schema, body, fields):
    with pytest.raises(BadRequest) as error:
        read(schema, {**body, **fields})
    assert error.value.param.partition(".")[0] in fields


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, False),
        ({"enable_thinking": True}, True),
        ({"think": True}, True),
        ({"think": "high"}, True),
        ({"think": False, "reasoning_effort": "none"}, False),
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"reasoning": {"enabled": True}}, True),
        ({"reasoning": {"effort": "low"}}, True),
        ({"reasoning": {"enabled": False, "effort": "high"}}, False),
        ({"reasoning_effort": "xhigh"}, True),
        ({"reasoning_effort": "disable"}, False),
        ({"reasoning_effort": "default"}, False),
        ({"chat_template_kwargs": {"enable_thinking": True, "more": 1}}, True),
    ],
)
def test_thinking_is_switched_by_every_name_that_clients_use(fields, thinks):
    body, _ = read(ChatCompletionRequest, {**CHAT, **fields})
    assert body.thinks is thinks
    assert body.shows_thoughts


def test_thoughts_can_be_hidden():
    for fields in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}):
        body, _ = read(ChatCompletionRequest, {**CHAT, **fields})
        assert not body.shows_thoughts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"think": True, "reasoning_effort": "none"}, "reasoning_effort"),
        ({"enable_thinking": False, "reasoning": {"effort": "high"}}, "reasoning"),
        ({"reasoning_effort": "a lot"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
def test_a_switch_that_contradicts_another_or_is_not_one_is_refused(fields, param):
    with pytest.raises(BadRequest) as error:
        read(ChatCompletionRequest, {**CHAT, **fields})
    assert error.value.param == param


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"type": "object", "properties": {"a": {"type": "integer", "exclusiveMinimum": True}}},
        {"type": "object", "properties": {"a": {"type": "any"}}, "required": None},
        {"properties": {"a": "string"}},
    ],
)
def test_a_tool_s_schema_is_checked_only_if_it_is_strict(schema):
    for strict in (False, None):
        tool = {"type": "function", "function": {**FUNCTION, "parameters": schema}}
        tool["function"]["strict"] = strict
        read(ChatCompletionRequest, {**CHAT, "tools": [tool]})
    tool["function"]["strict"] = True
    with pytest.raises(BadRequest) as error:
        read(ChatCompletionRequest, {**CHAT, "tools": [tool]})
    assert error.value.param == "tools.0.function.parameters"


def test_tools_that_are_no_functions_are_skipped_in_every_dialect():
    for schema, body, other in (
        (ChatCompletionRequest, CHAT, {"type": "custom", "custom": {"name": "x"}}),
        (ResponseRequest, RESPONSE, {"type": "web_search"}),
        (MessagesRequest, MESSAGES, {"type": "web_search_20250305", "name": "web_search"}),
    ):
        value, ignored = read(schema, {**body, "tools": [other]})
        assert len(value.tools) == 1
        assert ignored == [f"tools.{other['type']}"]


def test_up_to_64_stop_strings_are_accepted():
    stops = [str(number) for number in range(64)]
    value, _ = read(ChatCompletionRequest, {**CHAT, "stop": stops})
    assert value.stops == tuple(stops)
    with pytest.raises(BadRequest, match="65 stop strings are too many"):
        read(ChatCompletionRequest, {**CHAT, "stop": [*stops, "x"]})
