"""A model that is served under several names."""

import anthropic
import openai
import pytest

from tests.polling import wait_until

TURNS = [{"role": "user", "content": "Count to 20"}]
BODIES = {
    "/v1/chat/completions": {"messages": TURNS, "max_tokens": 1},
    "/v1/completions": {"prompt": "Count to 20", "max_tokens": 1},
    "/v1/responses": {"input": "Count to 20", "max_output_tokens": 1},
    "/v1/messages": {"messages": TURNS, "max_tokens": 1},
}


@pytest.fixture(scope="module")
def server(shared_server):
    return shared_server(EASEL_SERVED_MODEL_NAME="small, owner/small")


@pytest.mark.parametrize("path", BODIES)
def test_every_endpoint_answers_with_the_name_that_the_request_used(server, path):
    for wanted, name in (
        ("small", "small"),
        ("owner/small", "owner/small"),
        ("openai/owner/small", "owner/small"),
    ):
        answer = server.http.post(path, json={**BODIES[path], "model": wanted})
        assert answer.json()["model"] == name, answer.text
    refused = server.http.post(path, json={**BODIES[path], "model": "large"})
    assert refused.status_code == 404
    assert "'small' or 'owner/small'" in refused.text


def test_a_request_without_a_name_is_answered_with_the_first(server):
    answer = server.http.post("/v1/completions", json=BODIES["/v1/completions"])
    assert answer.json()["model"] == "small"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages/count_tokens", {"messages": TURNS}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [7]}),
    ],
)
def test_the_endpoints_that_do_not_generate_know_every_name(server, path, body):
    statuses = [
        server.http.post(path, json={**body, "model": name}).status_code
        for name in ("openai/small", "owner/small", "large")
    ]
    assert statuses == [200, 200, 404]


def test_every_name_is_listed_in_both_dialects_and_shown_at_the_start(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["small", "owner/small"]
        assert client.models.retrieve("openai/small").id == "small"
    with anthropic.Anthropic(base_url=server.url, api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["small", "owner/small"]
        assert [model.id for model in client.models.list(after_id="small")] == ["owner/small"]
        assert [model.id for model in client.models.list(before_id="owner/small")] == ["small"]
        assert client.models.retrieve("owner/small").display_name == "owner/small"
    wait_until(lambda: "  model    small, owner/small (float32" in server.log.read_text())
