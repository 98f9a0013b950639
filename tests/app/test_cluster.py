"""Where requests of a cluster go, and its metrics. `tests/ray_cluster` runs a whole one on Ray."""

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from app.cluster.destination import Destination, destination
from app.cluster.metrics import with_replicas
from tests.running_server import figures

MOST_BYTES = 10_000
ATTRIBUTION = "x-anthropic-billing-header: cc_version=1; cch={};"


def goal(path: str, **body: Any) -> Destination:
    return destination(path, json.dumps(body).encode(), MOST_BYTES)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def chat(*messages: dict[str, Any], **fields: Any) -> str:
    return goal("/v1/chat/completions", messages=messages, **fields).session


def anthropic(*messages: dict[str, Any], **fields: Any) -> str:
    return goal("/v1/messages", messages=messages, max_tokens=9, **fields).session


def responses(**fields: Any) -> Destination:
    return goal("/v1/responses", **fields)


def decisions(text: str, question: str) -> str:
    questions = [{"name": "q", "type": "predicate", "instructions": question}]
    return goal("/v1/decisions", input=text, questions=questions).session


def systemone(state: str, question: str) -> str:
    questions = {"q": {"type": "noul", "instructions": question}}
    return goal("/v1/systemone", state=state, questions=questions).session


def test_all_turns_of_a_chat_have_one_session():
    first = chat(user("Hello"))
    assert first
    assert chat(user("Hello"), assistant("Hi"), user("And now?")) == first
    assert chat(user("Hello"), assistant("Hi", reasoning_content="So."), user("Now?")) == first
    assert chat(user("Hello there")) != first


def test_the_system_prompt_belongs_to_a_chats_session():
    system = {"role": "system", "content": "Be brief."}
    assert chat(system, user("Hello")) != chat(user("Hello"))
    assert chat(system, user("Hello")) == chat(system, user("Hello"), assistant("Hi"), user("So?"))


def test_sampling_fields_and_tools_do_not_change_a_session():
    tool = {"type": "function", "function": {"name": "f"}}
    assert chat(user("Hello"), seed=3, tools=[tool]) == chat(user("Hello"))


def test_the_billing_header_does_not_change_a_session():
    sessions = {
        anthropic(
            user("Hello"),
            system=[{"type": "text", "text": f"{ATTRIBUTION.format(number)}\nBe brief."}],
        )
        for number in range(3)
    }
    assert sessions == {anthropic(user("Hello"), system="Be brief.")}


def test_thoughts_do_not_change_a_session():
    thought = {"type": "thinking", "thinking": "So.", "signature": ""}
    answer = {"role": "assistant", "content": [thought, {"type": "text", "text": "Hi"}]}
    assert anthropic(user("Hello"), answer, user("Now?")) == anthropic(user("Hello"))


def test_counting_tokens_goes_where_the_message_goes():
    counted = goal("/v1/messages/count_tokens", messages=[user("Hello")])
    assert counted.session == anthropic(user("Hello"))


def test_responses_without_references_have_a_session():
    first = responses(input="Hello", instructions="Be brief.")
    turns = [user("Hello"), assistant("Hi"), user("Now?")]
    assert first.session
    assert not first.held
    assert responses(input=turns, instructions="Be brief.") == first


def test_responses_go_where_what_they_refer_to_is():
    item = {"type": "item_reference", "id": "msg_1"}
    assert responses(input="Hello", previous_response_id="resp_1").held == ("resp_1",)
    assert responses(input=[item, user("Hello")]).held == ("msg_1",)


@pytest.mark.parametrize("end", ["", "/input_items"])
def test_a_kept_response_is_looked_for(end):
    assert destination(f"/v1/responses/resp_1{end}", b"", MOST_BYTES).held == ("resp_1",)


def test_a_running_answer_is_looked_for():
    body = {"id": "chatcmpl-1", "action": "reasoning_end"}
    assert goal("/v1/chat/completions/control", **body).held == ("chatcmpl-1",)


def test_a_raw_prompt_is_known_by_its_beginning():
    text = "x" * 2000
    assert (
        goal("/v1/completions", prompt=f"{text} and").session
        == goal("/v1/completions", prompt=text).session
    )
    assert (
        goal("/v1/completions", prompt="y").session != goal("/v1/completions", prompt="x").session
    )


def test_decisions_about_one_text_have_one_session():
    assert decisions("A text", "Is it long?")
    assert decisions("A text", "Is it long?") == decisions("A text", "Is it short?")
    assert decisions("A text", "Is it long?") != decisions("Another", "Is it long?")


def test_decisions_about_one_state_have_one_session():
    assert systemone("A state", "Is it on?")
    assert systemone("A state", "Is it on?") == systemone("A state", "Is it off?")
    assert systemone("A state", "Is it on?") != systemone("Another", "Is it on?")


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/", "/tokenize", "/nowhere"])
def test_other_requests_go_to_any_replica(path):
    assert destination(path, b"", MOST_BYTES) == Destination()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages": 3}'])
def test_a_request_that_is_refused_goes_to_any_replica(body):
    assert destination("/v1/chat/completions", body, MOST_BYTES) == Destination()


def test_a_request_with_too_much_text_goes_to_any_replica():
    assert not chat(user("a b " * MOST_BYTES))


def test_paths_without_v1_belong_to_the_same_endpoints():
    assert goal("/chat/completions", messages=[user("Hello")]).session == chat(user("Hello"))


def test_metrics_of_several_replicas_have_the_replica_as_a_label():
    def exposition(count: int) -> str:
        registry = CollectorRegistry()
        Counter("answers_total", "Answers", ("reason",), registry=registry).labels("x").inc(count)
        return generate_latest(registry).decode()

    text = with_replicas({"a": exposition(1), "b": exposition(2)}).decode()
    series = figures(text)
    assert series["answers_total", "x", "a"] == 1
    assert series["answers_total", "x", "b"] == 2
    assert text.count("# TYPE answers_total counter") == 1
