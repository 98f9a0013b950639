"""The options that say what is sent of an answer: thoughts, token ids, and the usage so far."""

import json

import pytest

from tests.counting import count

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "get_weather", "description": "Get the weather", "parameters": CITY}
THINKING = {
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [{"type": "function", "function": WEATHER}],
    "reasoning_effort": "low",
    "seed": 0,
}
COUNT = {"messages": [{"role": "user", "content": count(3)}], "seed": 0}
RAW = {"prompt": "one two", "max_tokens": 70, "seed": 0}
IDS = {"return_token_ids": True}
CONTINUOUS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
BOTH = [(CHAT, COUNT), (CHAT, THINKING), (COMPLETIONS, RAW)]


@pytest.fixture(scope="module")
def http(demo_server):
    return demo_server.http


def answer(http, path, body):
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chunks(http, path, body):
    text = http.post(path, json={**body, "stream": True}).text
    *events, done = [line[len("data: ") :] for line in text.split("\n") if line[:5] == "data:"]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def parts(chunks, index=0):
    return [each for chunk in chunks for each in chunk["choices"] if each["index"] == index]


@pytest.mark.parametrize("hide", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
def test_hidden_thoughts_are_thought_and_counted_but_not_sent(http, hide):
    shown, hidden = answer(http, CHAT, THINKING), answer(http, CHAT, {**THINKING, **hide})
    message = shown["choices"][0]["message"]
    assert message.pop("reasoning") == message.pop("reasoning_content") != ""
    for each in (message, hidden["choices"][0]["message"]):
        assert [call.pop("id") for call in each["tool_calls"]] != []
    assert hidden["choices"][0]["message"] == message
    assert hidden["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    assert hidden["usage"]["completion_tokens"] == shown["usage"]["completion_tokens"]
    streamed = chunks(http, CHAT, {**THINKING, **hide})
    deltas = [part["delta"] for part in parts(streamed)]
    assert not any(delta.keys() & {"reasoning", "reasoning_content"} for delta in deltas)
    assert all(deltas[:-1])  # no empty chunk in the place of a thought
    assert any("tool_calls" in delta for delta in deltas)
    shown_deltas = [part["delta"] for part in parts(chunks(http, CHAT, THINKING))]
    assert any("reasoning" in delta for delta in shown_deltas)


@pytest.mark.parametrize(("path", "body"), BOTH)
def test_token_ids_are_those_of_the_usage(http, path, body):
    whole = answer(http, path, {**body, **IDS})
    (choice,) = whole["choices"]
    prompt = (whole if path == CHAT else choice)["prompt_token_ids"]
    assert len(prompt) == whole["usage"]["prompt_tokens"]
    assert len(choice["token_ids"]) == whole["usage"]["completion_tokens"]
    if path == COMPLETIONS:
        assert prompt == answer(http, "/tokenize", {"prompt": body["prompt"]})["tokens"]
        assert "prompt_token_ids" not in whole
    elif body is COUNT:
        assert prompt == answer(http, "/tokenize", {"messages": body["messages"]})["tokens"]
        said = answer(http, "/detokenize", {"tokens": choice["token_ids"]})["prompt"]
        assert said.startswith(choice["message"]["content"])


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize(
    "options", [{}, {"n": 2}, {"stop": ["4"]}, {"stop": ["1"]}, {"max_tokens": 1}]
)
def test_a_stream_has_the_token_ids_of_the_whole_answer(http, path, body, options):
    body = {**body, **options, **IDS}
    whole, streamed = answer(http, path, body), chunks(http, path, body)
    counts = [len(choice["token_ids"]) for choice in whole["choices"]]
    assert sum(counts) == whole["usage"]["completion_tokens"] > 0
    for choice in whole["choices"]:
        mine = parts(streamed, choice["index"])
        assert [token for part in mine for token in part["token_ids"]] == choice["token_ids"]
        first = next(each for each in streamed if each["choices"][0] is mine[0])
        place, expected = (first, whole) if path == CHAT else (first["choices"][0], choice)
        assert place["prompt_token_ids"] == expected["prompt_token_ids"]
        assert first["choices"][0]["token_ids"] == []
    assert json.dumps(streamed).count("prompt_token_ids") == options.get("n", 1)


def test_each_chunk_has_the_tokens_that_have_come_with_it(http):
    streamed = parts(chunks(http, CHAT, {**COUNT, **IDS}))
    texts = [part for part in streamed if part["delta"].get("content")]
    assert len(texts) > 1
    for part in texts:
        said = answer(http, "/detokenize", {"tokens": part["token_ids"]})["prompt"]
        assert part["delta"]["content"] in said


def test_the_tokens_of_hidden_thoughts_are_sent_if_token_ids_are_requested(http):
    body = {**THINKING, **IDS, "include_reasoning": False}
    whole = answer(http, CHAT, body)
    sent = [token for part in parts(chunks(http, CHAT, body)) for token in part["token_ids"]]
    assert sent == whole["choices"][0]["token_ids"]
    assert len(sent) == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize(("path", "body"), [(CHAT, COUNT), (COMPLETIONS, RAW)])
def test_token_ids_are_those_of_each_prompt_and_only_if_requested(http, path, body):
    for without in ({}, {"return_token_ids": False}, {"return_token_ids": None}):
        assert "token_ids" not in json.dumps(answer(http, path, {**body, **without}))
        assert "token_ids" not in json.dumps(chunks(http, path, {**body, **without}))


def test_each_prompt_has_its_own_token_ids(http):
    body = {**RAW, **IDS, "prompt": [[5, 6], [7, 8, 9]], "max_tokens": 3}
    whole = answer(http, COMPLETIONS, body)
    assert [each["prompt_token_ids"] for each in whole["choices"]] == body["prompt"]
    first = [parts(chunks(http, COMPLETIONS, body), index)[0] for index in range(2)]
    assert [each["prompt_token_ids"] for each in first] == body["prompt"]


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize("options", [{}, {"n": 2}, {"stop": ["4"]}])
def test_each_chunk_has_the_usage_so_far_if_it_is_requested(http, path, body, options):
    streamed = chunks(http, path, {**body, **options, **IDS, **CONTINUOUS})
    last = streamed.pop()
    assert last["choices"] == []
    ends = []
    for index in range(options.get("n", 1)):
        mine = [chunk for chunk in streamed if chunk["choices"][0]["index"] == index]
        sent = 0
        for chunk in mine:
            usage = chunk["usage"]
            sent += len(chunk["choices"][0]["token_ids"])
            assert usage["completion_tokens"] == sent
            assert usage["prompt_tokens"] == last["usage"]["prompt_tokens"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        ends.append(sent)
    assert sum(ends) == last["usage"]["completion_tokens"] > 0


def test_the_usage_so_far_is_not_sent_without_the_usage(http):
    body = {**COUNT, "stream_options": {"continuous_usage_stats": True}}
    assert not any("usage" in chunk for chunk in chunks(http, CHAT, body))
