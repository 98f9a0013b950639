"""The status of every refusal, and its body in OpenAI's envelope."""

import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.polling import wait_until

GOOD = {"messages": [{"role": "user", "content": "hi"}]}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def named_tool(name):
    return {"type": "function", "function": {"name": name}}


def by_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def tool(**function):
    return {"type": "function", "function": {"name": "f", **function}}


def envelope(response):
    """Check the shape that every error has. Returns the error."""
    body = response.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    assert body["error"]["message"]
    assert response.headers["x-request-id"]
    check_retry_header(response)
    return body["error"]


def check_retry_header(response):
    """Check that clients are told not to retry if, and only if, the request itself is wrong."""
    wrong = 400 <= response.status_code < 500 and response.status_code != 429
    assert (response.headers.get("x-should-retry") == "false") == wrong
    assert ("retry-after" in response.headers) == (response.status_code in (429, 503))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]},
            "messages.0.tool_call_id",
        ),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages.0"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0",
        ),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"stop": [1]}, "stop.0"),
        ({"stop": 1}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 65}, "n"),  # more than the queue can hold
        ({"n": True}, "n"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e5}, "repetition_penalty"),
        ({"bad_words": "red"}, "bad_words"),
        ({"bad_words": ["red", 1]}, "bad_words.1"),
        ({"bad_words": ["red"] * 257}, "bad_words"),
        ({"bad_words": ["red", "x" * 129]}, "bad_words.1"),
        ({"bad_words": ["red", "red green"]}, "bad_words.1"),
        ({"bad_words": ["<turn|>"]}, "bad_words.0"),
        ({"stop_token_ids": [7, 99999]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [7] * 65}, "stop_token_ids"),
        ({"stop_token_ids": ["7"]}, "stop_token_ids.0"),
        ({"stop_token_ids": 7}, "stop_token_ids"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"max_denoising_steps": 0}, "max_denoising_steps"),
        ({"quality": "best"}, "quality"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [tool(name="a b")]}, "tools.0.function.name"),
        (
            {"tools": [tool(parameters={"type": "objekt"}, strict=True)]},
            "tools.0.function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": named_tool("other")}, "tool_choice"),
        (
            {"tools": [tool()], "tool_choice": "required", "guided_regex": "a"},
            "tool_choice",
        ),
        ({"tools": [tool(), tool(description="another")]}, "tools"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"},
            "reasoning_effort",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": by_schema({"not": {}})}, "response_format.json_schema.schema"),
        ({"response_format": by_schema({"enum": []})}, "response_format.json_schema.schema"),
        ({"guided_regex": "(?=a)a"}, "guided_regex"),
        ({"guided_regex": r"(a)\1"}, "guided_regex"),
        ({"guided_regex": "["}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["x"] * 501}, "guided_choice"),
        ({"guided_grammar": "root ::= [a-z]"}, "guided_grammar"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"grammar": "root ::= [a-z]"}, "grammar"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "a{200}", "max_tokens": 5}, "max_tokens"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_the_refusal_of_a_bad_field_names_it(http, change, param):
    response = http.post("/v1/chat/completions", json={**GOOD, **change})
    assert response.status_code == 400
    named = str(envelope(response)["param"])
    assert named == param or named.startswith(f"{param}.")


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([-1], "prompt.0"),
        ([], "prompt"),
        (["a", 1], "prompt.1"),
        ([[1], []], "prompt.1"),
        ([""], "prompt.0"),
        (7, "prompt"),
        ([99999], "prompt"),
    ],
)
def test_the_refusal_of_a_bad_prompt_names_its_part(http, prompt, param):
    response = http.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400
    assert envelope(response)["param"] == param


def test_an_integer_is_accepted_as_a_temperature(http):
    response = http.post("/v1/chat/completions", json={**GOOD, "temperature": 1, "max_tokens": 1})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": 0, "echo": True}, "logprobs"),
        ({"suffix": "b"}, "max_tokens"),
        ({"suffix": "b", "max_tokens": 32}, "suffix"),
    ],
)
def test_the_refusal_of_a_bad_field_of_a_completion_names_it(http, change, param):
    response = http.post("/v1/completions", json={"prompt": "a", **change})
    assert response.status_code == 400
    assert envelope(response)["param"] == param


def test_ignored_fields_are_accepted_and_named_in_a_header(http):
    neutral = {"n": 1, "top_p": 1, "presence_penalty": 0, "tools": None, "logprobs": False}
    response = http.post("/v1/chat/completions", json={**GOOD, **neutral, "max_tokens": 1})
    assert response.status_code == 200
    assert "x-easel-ignored" not in response.headers
    messages = [{"role": "user", "content": "hi", "timestamp": 7}]
    hints = {"messages": messages, "verbosity": "low", "metadata": {"a": 1}}
    response = http.post("/v1/chat/completions", json={**hints, "max_tokens": 1})
    assert response.status_code == 200
    assert response.headers["x-easel-ignored"] == "verbosity, metadata, messages.timestamp"


def test_messages_use_terms_of_the_api_and_not_of_python(http):
    response = http.post("/v1/chat/completions", json={**GOOD, "logit_bias": {"x": 1}})
    assert response.json()["error"]["message"] == "logit_bias: 'x' is not a token id."


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'{"messages": NaN}', b"\xff"])
def test_a_body_that_is_not_a_json_object_is_refused(http, body):
    response = http.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    envelope(response)


def test_the_refusal_of_a_prompt_longer_than_the_context_has_the_numbers(http):
    response = http.post("/v1/completions", json={"prompt": [300] * 2048})
    error = envelope(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "prompt"
    # LiteLLM, aider, LangChain and others look for the first words to shorten a conversation.
    assert error["message"] == (
        "This model's maximum context length is 2048 tokens. However, your prompt is too long: "
        "it has 2048 tokens; at most 2047 leave room for an answer."
    )
    suffix = {"prompt": [300] * 2044, "suffix": "one two three", "max_tokens": 4}
    message = envelope(http.post("/v1/completions", json=suffix))["message"]
    assert message.startswith("This model's maximum context length is 2048 tokens.")
    assert "it has 2044 tokens; at most " in message


def test_a_wrong_path_and_a_wrong_method_are_answered_in_the_envelope(http):
    assert envelope(http.get("/v1/nope"))["code"] == "not_found"
    wrong = http.get("/v1/chat/completions")
    assert (wrong.status_code, envelope(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "OPTIONS, POST"


def test_the_request_id_of_the_client_is_returned(http):
    response = http.get("/health/live", headers={"x-request-id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    forged = http.get("/health/live", headers={"x-request-id": "a b\tc"})
    assert forged.headers["x-request-id"].startswith("req-")


def test_a_body_over_the_limit_is_refused(limited_server):
    response = httpx.post(f"{limited_server.url}/v1/chat/completions", content=b"x" * 3000)
    assert response.status_code == 413
    envelope(response)
    with socket.create_connection(("127.0.0.1", int(limited_server.port))) as announcing:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n"
        announcing.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert announcing.recv(100).startswith(b"HTTP/1.1 413")
    assert "Traceback" not in limited_server.log.read_text()


def test_a_client_that_disconnects_while_it_sends_causes_no_error(server):
    log_before, tasks = len(server.log.read_text()), server.event_loop_tasks()
    with socket.create_connection(("127.0.0.1", int(server.port))) as leaving:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
        leaving.sendall(f"{head}{{".encode())
        wait_until(lambda: server.event_loop_tasks() > tasks)  # the request has its task
    wait_until(lambda: server.event_loop_tasks() <= tasks)
    assert "Traceback" not in server.log.read_text()[log_before:]


def test_a_long_prompt_delays_no_other_request(http, server):
    huge = {"messages": [{"role": "user", "content": "x" * 3_000_000}]}
    with ThreadPoolExecutor() as pool:
        refused = pool.submit(
            httpx.post, f"{server.url}/v1/chat/completions", json=huge, timeout=60
        )
        answered = 0
        while not refused.done():
            http.get("/health/live").raise_for_status()
            answered += 1
    assert refused.result().json()["error"]["code"] == "context_length_exceeded"
    assert answered > 3
