"""The chaos finds wrong answers, cut streams and errors that no storm explains."""

import json

import pytest

from tests.chaos.answers import BrokenError, RefusedError, answer_of
from tests.chaos.requests import Request
from tests.chaos.storm import Tally, judge

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def chunk(delta, finish_reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    data = {"object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(data)}\n\n"


def stream(*texts, reason="stop", done=True):
    chunks = [chunk({"content": text}) for text in texts]
    return "".join([*chunks, chunk({}, reason), "data: [DONE]\n\n" if done else ""])


def whole(text, reason="stop"):
    choice = {"index": 0, "message": {"content": text}, "finish_reason": reason}
    return json.dumps({"object": "chat.completion", "choices": [choice]})


def event(**data):
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n"


def error(code, kind="server_error"):
    return json.dumps({"error": {"code": code, "type": kind, "message": "x"}})


def judged(status, body, expected="1 2"):
    tally = Tally()
    judge(tally, Request("chat", CHAT, {}), answer_of(CHAT, 200, whole(expected)), status, body)
    return tally.right, sum(tally.errors.values()), len(tally.wrong)


def test_a_stream_and_a_whole_answer_have_the_same_form():
    assert answer_of(CHAT, 200, stream("1", " 2")) == answer_of(CHAT, 200, whole("1 2"))


def test_messages_have_the_same_form_streamed_and_whole():
    blocks = [
        {"type": "text", "text": "It is"},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
    ]
    body = {
        "type": "message",
        "content": blocks,
        "stop_reason": "tool_use",
        "stop_sequence": None,
    }
    events = [
        event(type="message_start", message={}),
        event(type="content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "It is"}),
        event(type="content_block_start", index=1, content_block={**blocks[1], "input": {}}),
        event(
            type="content_block_delta",
            index=1,
            delta={"type": "input_json_delta", "partial_json": '{"x":1}'},
        ),
        event(type="message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}),
    ]
    expected = answer_of(MESSAGES, 200, json.dumps(body))
    assert answer_of(MESSAGES, 200, "".join([*events, event(type="message_stop")])) == expected
    with pytest.raises(BrokenError):
        answer_of(MESSAGES, 200, "".join(events))


def test_deltas_of_a_response_that_differ_from_its_text_are_broken():
    def body(delta):
        item = {"type": "message", "content": [{"type": "output_text", "text": "1 2"}]}
        last = {"object": "response", "status": "completed", "output": [item]}
        return event(type="response.output_text.delta", delta=delta) + event(
            type="response.completed", response=last
        )

    assert answer_of(RESPONSES, 200, body("1 2"))
    with pytest.raises(BrokenError):
        answer_of(RESPONSES, 200, body("1 1 2"))


@pytest.mark.parametrize("body", [whole("1 2"), stream("1 2"), stream("1", " ", "2")])
def test_the_answer_from_before_the_storm_is_right(body):
    assert judged(200, body) == (1, 0, 0)


@pytest.mark.parametrize(
    "body",
    [
        whole("1 3"),
        whole("1 2", reason="length"),
        stream("1 2", reason="length"),
        stream("1 ", "1 ", "2"),
        stream("1 2", done=False),
        stream("1 2")[:-20],
        chunk({"content": "1 2"}) + "data: [DONE]\n\n",
        "",
        "{",
    ],
)
def test_another_answer_or_a_part_of_one_is_wrong(body):
    assert judged(200, body) == (0, 0, 1)


def test_errors_that_the_storm_explains_are_errors_of_their_own():
    assert judged(503, error("not_ready")) == (0, 1, 0)
    failed = chunk({"content": "1"}) + f"data: {error('worker_died')}\n\ndata: [DONE]\n\n"
    assert judged(200, failed) == (0, 1, 0)


@pytest.mark.parametrize("status", [400, 500])
def test_other_errors_of_good_requests_are_wrong(status):
    assert judged(status, error("invalid_value")) == (0, 0, 1)
    assert judged(status, "no JSON") == (0, 0, 1)


def test_an_error_is_reported_with_its_status_and_code():
    with pytest.raises(RefusedError, match="503 not_ready"):
        answer_of(CHAT, 503, error("not_ready"))
