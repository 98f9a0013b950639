"""What a stream sends while its answer waits for its turn, and what clients make of that."""

import contextlib
import json

import anthropic
import httpx
import openai
import pytest

from tests.polling import wait_until
from tests.server.stream_schema import check_chat_stream, check_completion_stream
from tests.server.test_gone import idle_tasks, read_until, sent, settled
from tests.server.test_life import LONG
from tests.server.test_responses import WEATHER, check_schema

QUESTION = [{"role": "user", "content": "Count to 30"}]
BODIES = {
    "/v1/chat/completions": {"messages": QUESTION},
    "/v1/completions": {"prompt": "one two", "max_tokens": 5},
    "/v1/responses": {"input": "Count to 30"},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 100},
}


@pytest.fixture(scope="module")
def server(shared_server):
    """The demo model, with streams that send a keep-alive after a millisecond without an event."""
    return shared_server(EASEL_MODEL="demo", EASEL_STREAM_IDLE_S="0.001")


def lines_of(server, path, waiting):
    """Returns the lines of a stream, and how many of them came while the worker was stopped.

    The worker goes on when `waiting` is true of the lines so far.
    """
    body = {**BODIES[path], "stream": True, "seed": 0}
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(contextlib.ExitStack())
        stopped.enter_context(server.stopped_worker())
        response = stack.enter_context(server.http.stream("POST", path, json=body))
        received, count = [], 0
        for line in response.iter_lines():
            received.append(line)
            if not count and waiting(received):
                count = len(received)
                stopped.close()
    return received, count


def events_of(lines):
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


@pytest.mark.parametrize(
    ("path", "check"),
    [
        ("/v1/chat/completions", check_chat_stream),
        ("/v1/completions", check_completion_stream),
    ],
)
def test_a_waiting_completion_sends_comments_that_no_blank_line_follows(server, path, check):
    lines, count = lines_of(server, path, lambda lines: lines.count(": keep-alive") == 3)
    assert {line for line in lines if line.startswith(":")} == {": keep-alive"}
    assert "" not in lines[lines.index(": keep-alive") : count]
    check(lines)
    role = [event["choices"][0].get("delta") for event in events_of(lines[:count])]
    assert role == ([{"role": "assistant", "content": ""}] if "chat" in path else [])


def test_a_waiting_message_has_begun_and_sends_pings(server):
    def pinged_thrice(lines):
        return lines.count("event: ping") == 3 and lines[-1] == ""

    lines, count = lines_of(server, "/v1/messages", pinged_thrice)
    start, *pings = events_of(lines[:count])
    usage = start["message"]["usage"]
    assert (start["type"], pings) == ("message_start", [{"type": "ping"}] * 3)
    assert (usage["output_tokens"], start["message"]["content"]) == (0, [])
    last = events_of(lines)[-2]["usage"]
    assert usage["input_tokens"] == last["input_tokens"] + last["cache_read_input_tokens"] > 0
    assert not any(line.startswith(":") for line in lines)


def test_a_waiting_response_repeats_that_it_is_in_progress_and_numbers_it(server):
    def repeated(lines):
        return lines.count("event: response.in_progress") == 4 and lines[-1] == ""

    lines, count = lines_of(server, "/v1/responses", repeated)
    types = [event["type"] for event in events_of(lines[:count])]
    assert types == ["response.created", *["response.in_progress"] * 4]
    events = events_of(lines)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    check_schema(events)
    assert not any(line.startswith(":") for line in lines)
    # Later ones have what the answer is by then, so a client may take each for the response.
    shown = [event["response"]["output"] for event in events if "response" in event]
    assert [len(output) for output in shown] == sorted(len(output) for output in shown)
    assert shown[0] == []
    assert shown[-1][0]["content"][0]["text"].endswith("30")


def test_openai_s_sdk_assembles_the_same_answers(server, demo_client):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        chat = {"model": "demo", "messages": QUESTION, "seed": 0}
        with client.chat.completions.stream(**chat) as stream:
            text = stream.get_final_completion().choices[0].message.content
        assert text == demo_client.chat.completions.create(**chat).choices[0].message.content
        options = {"tools": [WEATHER], "reasoning": {"effort": "low", "summary": "auto"}}
        asked = {"model": "demo", "input": "What is the weather in Paris?", **options}
        with client.responses.stream(**asked, extra_body={"seed": 0}) as stream:
            events, response = list(stream), stream.get_final_response()
    assert [item.type for item in response.output] == ["reasoning", "function_call"]
    assert sum(event.type == "response.in_progress" for event in events) > 1


def test_anthropic_s_sdk_assembles_the_message(server):
    with (
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
        client.messages.stream(model="demo", **BODIES["/v1/messages"]) as stream,
    ):
        message = stream.get_final_message()
    assert message.content[0].text.endswith("30")
    assert message.usage.output_tokens > 0


@pytest.mark.parametrize("path", BODIES)
def test_a_refusal_is_a_status_and_not_an_event(server, path):
    for change, status in (({"colour": "red"}, 400), ({"model": "other"}, 404)):
        refused = server.http.post(path, json={**BODIES[path], **change, "stream": True})
        assert refused.status_code == status
        assert refused.headers["content-type"] == "application/json"


def test_an_answer_that_fails_after_its_stream_has_begun_ends_with_anthropic_s_error(server):
    with (
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
        server.stopped_worker(),
    ):
        options = {**BODIES["/v1/messages"], "extra_body": {"timeout": 3}}
        stream = client.messages.create(model="demo", stream=True, **options)
        assert next(stream).type == "message_start"
        with pytest.raises(anthropic.APIStatusError, match="longer than allowed") as error:
            next(stream)
    assert error.value.body["error"]["type"] == "timeout_error"


def test_a_client_that_disconnects_between_keep_alives_is_cancelled(server):
    tasks, before = idle_tasks(server), server.ended()["cancelled"]
    with server.stopped_worker():
        connection = sent(server, {**LONG, "stream": True})
        read_until(connection, b": keep-alive\n")
        connection.close()
        wait_until(lambda: server.event_loop_tasks() <= tasks)
    assert settled(server)["cancelled"] == before + 1


def test_a_client_that_does_not_read_keep_alives_gets_all_of_its_answer(server):
    whole = httpx.post(f"{server.url}/v1/chat/completions", json={**LONG, "seed": 1}).json()
    text = whole["choices"][0]["message"]["content"]
    body = {**LONG, "seed": 1, "stream": True}
    with contextlib.closing(sent(server, body, receive_bytes=4096)) as connection:
        with server.stopped_worker():
            read_until(connection, b": keep-alive\n")
        server.wait_until_idle()
        lines = read_until(connection, b"[DONE]").decode().split("\n")
    chunks = events_of(line for line in lines if "[DONE]" not in line)
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks) == text
