"""Every stream fits OpenAI's schema exactly, and the check refuses streams that do not."""

import json
from copy import deepcopy

import pytest

from tests.server.stream_schema import check_chat_stream, check_completion_stream

CHAT = {"messages": [{"role": "user", "content": "Count to 20"}], "max_tokens": 70, "seed": 1}
LOGPROBS = {"logprobs": True, "top_logprobs": 2}
VOWELS = {"stop": ["a", "e", "i", "o"]}
COMPLETION = {"prompt": "one two", "max_tokens": 70, "seed": 1}
USAGE = {"stream_options": {"include_usage": True}}


def stream(http, path, **body):
    with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        return list(response.iter_lines())


def lines(chunks):
    events = [json.dumps(chunk) for chunk in chunks]
    return [line for event in [*events, "[DONE]"] for line in (f"data: {event}", "")]


@pytest.mark.parametrize(
    "options", [{}, VOWELS, {"max_tokens": 1}, LOGPROBS, {**LOGPROBS, **VOWELS, "n": 2}]
)
@pytest.mark.parametrize("usage", [{}, USAGE])
def test_a_chat_stream_fits_the_schema_of_openai(http, options, usage):
    sent = stream(http, "/v1/chat/completions", **{**CHAT, **options, **usage})
    check_chat_stream(sent, include_usage=bool(usage))


@pytest.mark.parametrize(
    "options", [{}, VOWELS, {"max_tokens": 1}, {"logprobs": 2}, {"logprobs": 2, **VOWELS, "n": 2}]
)
@pytest.mark.parametrize("usage", [{}, USAGE])
def test_a_completion_stream_fits_the_schema_of_openai(http, options, usage):
    sent = stream(http, "/v1/completions", **{**COMPLETION, **options, **usage})
    check_completion_stream(sent, include_usage=bool(usage))


def by_choice(chunks):
    parts = {}
    for chunk in chunks:
        for each in chunk["choices"]:
            parts.setdefault(each["index"], []).append(each)
    return [parts[index] for index in sorted(parts)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 2},
        {"stop": ["5, 6"]},
        {"stop": ["5, 6"], "n": 2},
        {"max_tokens": 20},
        {"reasoning_effort": "low"},
    ],
)
def test_a_chat_stream_has_the_log_probabilities_of_its_text_and_of_the_whole_answer(
    demo_server, options
):
    body = {**CHAT, **LOGPROBS, **options}
    whole = demo_server.http.post("/v1/chat/completions", json=body).json()["choices"]
    chunks = check_chat_stream(stream(demo_server.http, "/v1/chat/completions", **body))
    assert len(whole) == options.get("n", 1)
    for answer, parts in zip(whole, by_choice(chunks), strict=True):
        expected = answer["logprobs"]["content"]
        streamed, text = [], ""
        for each in parts:
            streamed += (each["logprobs"] or {"content": []})["content"]
            text += each["delta"].get("content", "")
            # The tokens cover the whole text. Only a token in which a stop string begins goes on
            # after the text's end.
            tokens = [token["token"] for token in streamed]
            assert "".join(tokens).startswith(text)
            assert len("".join(tokens[:-1])) <= max(len(text) - 1, 0)
        assert [token["token"] for token in streamed] == [token["token"] for token in expected]
        for token, same in zip(streamed, expected, strict=True):
            assert token["logprob"] == pytest.approx(same["logprob"], abs=1e-3)
            assert len(token["top_logprobs"]) == len(same["top_logprobs"]) == 2
            assert token["top_logprobs"][0]["logprob"] >= token["logprob"] - 1e-6


@pytest.mark.parametrize("options", [{}, {"n": 2}, {"stop": ["i"]}, {"max_tokens": 7}])
def test_a_completion_stream_has_the_log_probabilities_of_the_whole_answer(http, options):
    body = {**COMPLETION, "logprobs": 2, **options}
    whole = http.post("/v1/completions", json=body).json()["choices"]
    chunks = check_completion_stream(stream(http, "/v1/completions", **body))
    assert len(whole) == options.get("n", 1)
    for answer, parts in zip(whole, by_choice(chunks), strict=True):
        expected = answer["logprobs"]
        assert expected["tokens"]
        streamed = [each["logprobs"] for each in parts]  # also of parts without a text
        for field in ("tokens", "text_offset"):
            assert [value for each in streamed for value in each[field]] == expected[field]
        figures = [value for each in streamed for value in each["token_logprobs"]]
        assert figures == pytest.approx(expected["token_logprobs"], abs=1e-3)
        assert [len(best) for each in streamed for best in each["top_logprobs"]] == [
            len(best) for best in expected["top_logprobs"]
        ]


WEATHER = {
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.mark.parametrize(
    ("question", "options", "reason"),
    [
        ("Count to 40", {}, "stop"),
        ("Count to 40", {"n": 3}, "stop"),
        ("Count to 40", {"reasoning_effort": "low"}, "stop"),
        ("Count to 40", {"reasoning_effort": "low", "n": 2, "max_tokens": 20}, "length"),
        ("What is the weather in Paris?", {}, "tool_calls"),
        ("What is the weather in Paris?", {"n": 2}, "tool_calls"),
        ("What is the weather in Paris?", {"reasoning_effort": "low"}, "tool_calls"),
    ],
)
def test_streams_of_the_demo_model_fit_the_schema_of_openai(demo_server, question, options, reason):
    body = {
        "messages": [{"role": "user", "content": question}],
        "tools": [{"type": "function", "function": WEATHER}] if "weather" in question else None,
        "seed": 1,
        **options,
        **USAGE,
    }
    sent = stream(demo_server.http, "/v1/chat/completions", **body)
    chunks = check_chat_stream(sent, include_usage=True)
    parts = [part for chunk in chunks for part in chunk["choices"]]
    ends = [part["finish_reason"] for part in parts if part["finish_reason"]]
    assert ends == [reason] * options.get("n", 1)
    thoughts = [part["delta"] for part in parts if "reasoning_content" in part["delta"]]
    assert bool(thoughts) is ("reasoning_effort" in options)


def part(delta, reason=None, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
    head = {"id": "chatcmpl-1", "created": 1, "model": "demo", "object": "chat.completion.chunk"}
    return {**head, "usage": None, "choices": [choice], **more}


def call(index, function, **more):
    return {"tool_calls": [{"index": index, "function": function, **more}]}


RIGHT = [
    part({"role": "assistant", "content": ""}),
    part({"reasoning_content": "Hm.", "reasoning": "Hm."}),
    part({"content": "Two calls."}),
    part(call(0, {"name": "f", "arguments": ""}, id="call_1", type="function")),
    part(call(0, {"arguments": '{"a": 1}'})),
    part(call(1, {"name": "f", "arguments": "{}"}, id="call_2", type="function")),
    part({}, "tool_calls", diffusion={"blocks": 1}),
    part(
        {},
        choices=[],
        usage={
            "prompt_tokens": 2,
            "completion_tokens": 3,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    ),
]


def choice(chunks, index):
    return chunks[index]["choices"][0]


def first_call(chunks, index):
    return choice(chunks, index)["delta"]["tool_calls"][0]


BREAKS = {
    "an unknown field of a chunk": lambda c: c[2].update(extra=1),
    "an unknown field of a choice": lambda c: choice(c, 2).update(extra=1),
    "an unknown field of a delta": lambda c: choice(c, 2)["delta"].update(extra=1),
    "an unknown field of a call": lambda c: first_call(c, 3).update(extra=1),
    "an unknown field of usage": lambda c: c[-1]["usage"].update(extra=1),
    "a missing id": lambda c: c[2].pop("id"),
    "a missing reason": lambda c: choice(c, 2).pop("finish_reason"),
    "a number as text": lambda c: c[2].update(created="1"),
    "an unknown reason": lambda c: choice(c, 6).update(finish_reason="done"),
    "an unknown object": lambda c: [each.update(object="chunk") for each in c],
    "another id": lambda c: c[2].update(id="chatcmpl-2"),
    "no role": lambda c: c.pop(0),
    "no content beside the role": lambda c: choice(c, 0)["delta"].pop("content"),
    "two roles": lambda c: choice(c, 2)["delta"].update(role="assistant"),
    "an empty delta": lambda c: choice(c, 2).update(delta={}),
    "no end": lambda c: c.pop(6),
    "two ends": lambda c: choice(c, 2).update(finish_reason="stop"),
    "content at the end": lambda c: choice(c, 6)["delta"].update(content="more"),
    "no usage": lambda c: c.pop(),
    "usage too early": lambda c: c[2].update(usage=c[-1]["usage"]),
    "usage with a choice": lambda c: c[-1].update(choices=c[2]["choices"]),
    "usage that does not add up": lambda c: c[-1]["usage"].update(total_tokens=6),
    "more cached than prompt tokens": lambda c: c[-1]["usage"]["prompt_tokens_details"].update(
        cached_tokens=3
    ),
    "choices not from 0": lambda c: [choice(c, i).update(index=1) for i in range(7)],
    "a chunk without a choice": lambda c: c[2].update(choices=[]),
    "an error": lambda c: c.insert(3, {"error": {"message": "no"}}),
    "a call without an id": lambda c: first_call(c, 3).pop("id"),
    "a call without a type": lambda c: first_call(c, 3).pop("type"),
    "a call without a name": lambda c: first_call(c, 3)["function"].pop("name"),
    "a call named twice": lambda c: first_call(c, 4).update(id="call_1"),
    "a skipped index of a call": lambda c: first_call(c, 5).update(index=2),
    "two calls with one id": lambda c: first_call(c, 5).update(id="call_1"),
    "cut arguments": lambda c: first_call(c, 4)["function"].update(arguments='{"a"'),
    "a call without the reason tool_calls": lambda c: choice(c, 6).update(finish_reason="stop"),
    "the reason tool_calls without a call": lambda c: [c.pop(3) for _ in range(3)],
}


def test_a_stream_with_calls_and_our_extensions_is_accepted():
    assert check_chat_stream([": keep-alive", *lines(RIGHT)], include_usage=True) == RIGHT


def test_a_comment_that_a_blank_line_follows_is_refused():
    with pytest.raises(AssertionError, match="not one line and a blank line"):
        check_chat_stream([": keep-alive", "", *lines(RIGHT)], include_usage=True)


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
def test_a_stream_with_one_mistake_is_refused(broken):
    chunks = deepcopy(RIGHT)
    broken(chunks)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check_chat_stream(lines(chunks), include_usage=True)


@pytest.mark.parametrize(
    "broken",
    [
        lines(RIGHT)[:-2],
        [*lines(RIGHT), "data: [DONE]", ""],
        [line.replace("data: ", "data:") for line in lines(RIGHT)],
        [line for line in lines(RIGHT) if line],
        ["event: chunk", *lines(RIGHT)],
        [],
        ["data: [DONE]", ""],
    ],
)
def test_wrongly_framed_events_are_refused(broken):
    with pytest.raises((AssertionError, ValueError)):
        check_chat_stream(broken, include_usage=True)


def test_usage_that_was_not_requested_is_refused():
    with pytest.raises(AssertionError, match="not requested"):
        check_chat_stream(lines(RIGHT))


COMPLETION_BREAKS = {
    "an unknown field of a choice": lambda c: choice(c, 0).update(extra=1),
    "an unknown reason": lambda c: choice(c, 1).update(finish_reason="tool_calls"),
    "a missing text": lambda c: choice(c, 0).pop("text"),
    "an empty text": lambda c: choice(c, 0).update(text=""),
    "a text at the end": lambda c: choice(c, 1).update(text="more"),
    "two ends": lambda c: choice(c, 0).update(finish_reason="stop"),
}


@pytest.mark.parametrize("broken", COMPLETION_BREAKS.values(), ids=COMPLETION_BREAKS)
def test_a_completion_stream_with_one_mistake_is_refused(broken):
    head = {"id": "cmpl-1", "created": 1, "model": "demo", "object": "text_completion"}
    parts = [{"text": "one", "finish_reason": None}, {"text": "", "finish_reason": "stop"}]
    chunks = [{**head, "choices": [{"index": 0, **each, "logprobs": None}]} for each in parts]
    assert check_completion_stream(lines(chunks)) == chunks
    broken(chunks)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check_completion_stream(lines(chunks))
