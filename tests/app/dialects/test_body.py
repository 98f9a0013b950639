"""An error in a request's body names the field, the value that was sent and the allowed ones."""

import json

import pytest
from fastapi import Request

from app.dialects.body import parsed
from app.dialects.chat.schema import ChatCompletionRequest
from app.errors import BadRequest

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
            {"tool_choice": "required"},
            'tool_choice: "required" is not supported; allowed: null, "none", "auto".',
        ),
        (
            {"logit_bias": {"5": 101}},
            "logit_bias: the bias of token 5 is 101; it must be from -100 to 100.",
        ),
        ({"colour": "red"}, "Unknown field: colour."),
    ],
)
async def test_an_error_repeats_the_value_that_was_sent(change, message):
    async def receive():
        body = json.dumps({"messages": MESSAGES, **change}).encode()
        return {"type": "http.request", "body": body}

    with pytest.raises(BadRequest) as error:
        await parsed(Request({"type": "http"}, receive), ChatCompletionRequest)
    assert error.value.message == message
