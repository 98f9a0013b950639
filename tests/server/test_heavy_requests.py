"""No single request takes the front end beyond 3 GiB, or keeps other requests waiting."""

import json
import re
from pathlib import Path

import pytest

from tests.server.vitals import unharmed

MIB = 2**20
CONTROL = "<|turn>"
TEXT = 39 * MIB // 10  # characters that a body's text may have


def spaces():
    return "/tokenize", {"prompt": " " * TEXT}


def emoji():
    return "/tokenize", {"prompt": "\U0001f600" * (TEXT // 4)}


def control_tokens():
    content = CONTROL * (TEXT // len(CONTROL))
    return "/tokenize", {"messages": [{"role": "user", "content": content}]}


def lists():
    message = {"role": "user", "content": "x"}
    return "/v1/chat/completions", {"messages": [message], "metadata": [[]] * 249_000}


def results_in_reverse():
    calls = [{"id": str(n), "function": {"name": "f", "arguments": "{}"}} for n in range(9_000)]
    results = [
        {"role": "tool", "tool_call_id": str(n), "content": "r"} for n in range(8_999, 0, -1)
    ]
    assistant = {"role": "assistant", "tool_calls": calls}
    return "/tokenize", {"messages": [{"role": "user", "content": "x"}, assistant, *results]}


def long_text():
    content = "x" * (31 * MIB)
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    "heavy", [spaces, emoji, control_tokens, lists, results_in_reverse, long_text]
)
def test_the_heaviest_request_of_its_kind_takes_less_than_3_gib(server, heavy):
    path, body = heavy()
    process = Path(f"/proc/{server.process.pid}")
    (process / "clear_refs").write_text("5")  # the peak counts from here on
    with unharmed(server, 2 * 2**30):
        content = json.dumps(body, ensure_ascii=False).encode()
        response = server.http.post(path, content=content, timeout=110)
    assert response.status_code in (200, 400), response.text
    status = (process / "status").read_text()
    assert int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) < 3 * 2**20


@pytest.mark.parametrize("characters", [400_000, 31 * MIB])
def test_a_text_that_cannot_fit_is_refused_as_too_long_with_an_estimate(
    server, model_folder, characters
):
    text = "x" * characters
    chat = {"model": model_folder.name, "max_tokens": 1}
    chat |= {"messages": [{"role": "user", "content": text}]}
    for path, body in (
        ("/v1/chat/completions", chat),
        ("/v1/messages", chat),
        ("/v1/responses", {"input": text}),
        ("/v1/completions", {"prompt": text}),
    ):
        response = server.http.post(path, json=body)
        assert response.status_code == 400
        message = response.json()["error"]["message"]
        assert "maximum context length" in message
        assert "estimate" in message
        if path == "/v1/messages":
            assert re.match(r"prompt is too long: \d+ tokens > \d+ maximum\. ", message)


def test_text_has_a_smaller_limit_than_files_in_base64(server):
    text = server.http.post("/tokenize", content=json.dumps({"prompt": "é, " * 2 * MIB}))
    assert text.status_code == 413
    assert "max_text_bytes" in text.json()["error"]["message"]


def test_an_item_may_be_referred_to_once(server):
    kept = server.http.post("/v1/responses", json={"input": "x", "max_output_tokens": 1}).json()
    listed = server.http.get(f"/v1/responses/{kept['id']}/input_items").json()["data"]
    reference = {"type": "item_reference", "id": listed[0]["id"]}
    body = {"input": [reference], "max_output_tokens": 1}
    server.http.post("/v1/responses", json=body).raise_for_status()
    twice = server.http.post("/v1/responses", json={**body, "input": [reference] * 10_000})
    assert twice.status_code == 400
    assert "referred to twice" in twice.json()["error"]["message"]
