"""No field of OpenAI's schema is unknown here: each is honoured, or refused by name."""

import typing

import pytest
from openai.types import completion_create_params
from openai.types.chat import chat_completion_message
from openai.types.chat import completion_create_params as chat_params

from app.schemas.chat import ChatCompletionRequest, ChatMessage
from app.schemas.completions import CompletionRequest


def known(schema):
    return {*schema.model_fields, *schema.neutral}


@pytest.mark.parametrize(
    ("schema", "params"),
    [
        (ChatCompletionRequest, chat_params.CompletionCreateParamsBase),
        (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
    ],
)
def test_every_parameter_of_the_official_package_is_known(schema, params):
    assert set(typing.get_type_hints(params)) - known(schema) == set()


def test_every_field_of_an_answer_may_be_sent_back_as_a_turn():
    fields = set(chat_completion_message.ChatCompletionMessage.model_fields)
    assert fields - known(ChatMessage) == set()


@pytest.mark.parametrize("schema", [ChatCompletionRequest, CompletionRequest, ChatMessage])
def test_no_field_is_both_honoured_and_refused(schema):
    assert set(schema.model_fields) & set(schema.neutral) == set()
