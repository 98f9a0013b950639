"""An error in a request's body names the field, the value that was sent and the allowed ones."""

import json

import pytest

from app.dialects.body import checked_size, parse
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.responses.schema import ResponseRequest
from app.errors import BadRequest, BodyTooLarge

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2, got 3."),
        ({"n": True}, "n: Input should be a valid integer, got true."),
        ({"stop": 7}, "stop: Input should be a string or a list, got 7."),
        ({"stop": [5]}, "stop.0: Input should be a valid string, got 5."),
        ({"messages": {}}, "messages: Input should be a valid array, got an object."),
        ({"messages": []}, "messages: List should have at least 1 item after validation, not 0."),
        ({"messages": None}, "messages: Input should be a valid array, got null."),
        (
            {"messages": [{"role": "user", "content": [{"data": "x" * 999}]}]},
            "messages.0.content.0: Input should be an object with a type, such as 'text', "
            "got an object.",
        ),
        ({"store": True}, "store: true is not supported; allowed: null, false."),
        (
            {"audio": "x" * 99},
            f'audio: "{"x" * 59}… is not supported; allowed: null.',
        ),
        (
            {"tool_choice": "any"},
            'tool_choice: "any" is not supported; allowed: null, "none", "auto", "required", and '
            "an object of type function or allowed_tools.",
        ),
        (
            {"logit_bias": {"5": 101}},
            "logit_bias: the bias of token 5 is 101; it must be from -100 to 100.",
        ),
        ({"colour": "red"}, "Unknown field: colour."),
    ],
)
def test_an_error_repeats_the_value_that_was_sent(change, message):
    body = json.dumps({"messages": MESSAGES, **change}).encode()
    with pytest.raises(BadRequest) as error:
        parse(body, ChatCompletionRequest)
    assert error.value.message == message


PICTURE = b"iVBORw0KGgo_-+/" * 1000


def test_the_size_of_a_body_does_not_include_files_in_base64():
    url = b'{"image_url":{"url":"data:image\\/png;base64,' + PICTURE + b'=="}}'
    assert checked_size(url, 10_000) < 100
    assert checked_size(b'["' + PICTURE + b'", "' + PICTURE + b'"]', 10_000) < 100
    text = b'["' + b"[" * 9000 + b'"]'
    assert 9000 < checked_size(text, 10_000) < 9100
    with pytest.raises(BodyTooLarge, match="max_text_bytes"):
        checked_size(text, 9000)


def test_short_strings_in_base64_are_part_of_the_size():
    many = b"[" + b",".join([b'"abc"'] * 1000) + b"]"
    assert len(many) <= checked_size(many, 10_000) <= len(many) + 2
    for tail in (b"[" * 9000, b'"' + b"[" * 9000, b'"' * 9000):
        with pytest.raises(BodyTooLarge):
            checked_size(tail, 8000)


def test_a_body_may_have_many_numbers_and_texts_but_fewer_objects():
    room = 10**7
    text = rb'"a \" [{,' + b"[{," * 10**6 + b'"'
    assert checked_size(b'{"a":[' + text + b"," + b"5," * 10**6 + b"5]}", room)
    for many in (b"[]," * 300_000, b"{}," * 300_000, b"5," * 2**21):
        with pytest.raises(BodyTooLarge, match="objects and lists"):
            checked_size(b'{"a":[' + text + b"," + many + b"5]}", room)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messages": MESSAGES * 10_001}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}] * 10_001}]}, "content"),
        ({"tools": [{"type": "x"}] * 1_001}, "tools"),
        ({"logit_bias": {str(token): 1 for token in range(1_025)}}, "logit_bias"),
        ({"stop": "x" * 1_001}, "stop"),
        ({str(key): 1 for key in range(1_000)}, "1001 fields"),
        ({"messages": [{**MESSAGES[0], **{str(key): 1 for key in range(1_000)}}]}, "1002 fields"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_more_of_anything_than_a_request_can_need_is_refused(change, field):
    with pytest.raises(BadRequest, match=field):
        parse(json.dumps({"messages": MESSAGES, **change}).encode(), ChatCompletionRequest)


@pytest.mark.parametrize(
    "change",
    [{"metadata": {"a": "x" * 2**16}}, {"user": "x" * 1025}, {"input": [MESSAGES[0]] * 10_001}],
    ids=lambda change: next(iter(change)),
)
def test_what_each_event_of_a_response_repeats_is_small(change):
    with pytest.raises(BadRequest, match=next(iter(change))):
        parse(json.dumps({"input": "x", **change}).encode(), ResponseRequest)
