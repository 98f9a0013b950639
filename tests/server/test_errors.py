"""Every refusal: its status, and OpenAI's envelope."""

import pytest

GOOD = {"messages": [{"role": "user", "content": "hi"}]}


def envelope(response):
    """The one shape that every error has."""
    body = response.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    assert body["error"]["message"]
    assert response.headers["x-request-id"]
    return body["error"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": [{"role": "user", "content": "x", "name": "Al"}]}, "messages.0.name"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"top_p": 0.5}, "top_p"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_field_is_named(http, change, param):
    response = http.post("/v1/chat/completions", json={**GOOD, **change})
    assert response.status_code == 400
    assert str(envelope(response)["param"]).startswith(param)


def test_neutral_values_of_unsupported_fields_are_accepted(http):
    neutral = {"n": 1, "top_p": 1, "presence_penalty": 0, "tools": None, "logprobs": False}
    response = http.post("/v1/chat/completions", json={**GOOD, **neutral, "max_tokens": 1})
    assert response.status_code == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'{"messages": NaN}', b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(http, body):
    response = http.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    envelope(response)


def test_a_prompt_longer_than_the_context_is_refused_with_numbers(http):
    response = http.post("/v1/completions", json={"prompt": [300] * 2048})
    error = envelope(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "2048 tokens" in error["message"]


def test_a_wrong_path_and_a_wrong_method_answer_in_the_envelope(http):
    assert envelope(http.get("/v1/nope"))["code"] == "not_found"
    wrong = http.get("/v1/chat/completions")
    assert (wrong.status_code, envelope(wrong)["code"]) == (405, "method_not_allowed")


def test_the_client_s_request_id_comes_back(http):
    response = http.get("/health/live", headers={"x-request-id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    forged = http.get("/health/live", headers={"x-request-id": "a b\tc"})
    assert forged.headers["x-request-id"].startswith("req-")


def test_a_body_over_the_limit_is_refused(start_server):
    import httpx

    server = start_server(EASEL_MAX_BODY_BYTES="2000").wait_until_ready()
    response = httpx.post(f"{server.url}/v1/chat/completions", content=b"x" * 3000)
    assert response.status_code == 413
    envelope(response)
