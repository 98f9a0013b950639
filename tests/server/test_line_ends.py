"""Characters at which clients end a line, although JSON may have them, in the events of streams."""

import json

import pytest

NAME = "a\u2028b\u2029c\x85d"  # every event of every dialect has the model's name
QUESTION = [{"role": "user", "content": "Count"}]
BODIES = {
    "/v1/chat/completions": {"messages": QUESTION, "max_tokens": 5},
    "/v1/completions": {"prompt": NAME, "echo": True, "max_tokens": 5},
    "/v1/responses": {"input": "Count", "max_output_tokens": 5, "metadata": {NAME: NAME}},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 5},
}


@pytest.mark.parametrize("path", BODIES)
def test_an_event_is_one_line_for_clients_that_split_at_every_line_end(shared_server, path):
    server = shared_server(EASEL_SERVED_MODEL_NAME=NAME)
    text = server.http.post(path, json={**BODIES[path], "stream": True}).text
    assert text.splitlines() == text.removesuffix("\n").split("\n")
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    events = [json.loads(each) for each in data if each != "[DONE]"]
    first = events[0].get("message") or events[0].get("response") or events[0]
    assert first["model"] == NAME
    if path == "/v1/completions":
        assert "".join(each["choices"][0]["text"] for each in events).startswith(NAME)
    if path == "/v1/responses":
        assert first["metadata"] == {NAME: NAME}
