"""No field of the official packages is unknown here: each is honoured, or refused by name."""

import typing

import anthropic.types
import anthropic.types.beta
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_tokens_params
from anthropic.types.beta import message_create_params as beta_message_params
from openai.types import completion_create_params
from openai.types.chat import chat_completion_message
from openai.types.chat import completion_create_params as chat_params

from app.schemas import anthropic as messages
from app.schemas.chat import ChatCompletionRequest, ChatMessage
from app.schemas.completions import CompletionRequest


def known(schema):
    return {*schema.model_fields, *schema.neutral}


@pytest.mark.parametrize(
    ("schema", "params"),
    [
        (ChatCompletionRequest, chat_params.CompletionCreateParamsBase),
        (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
        (messages.MessagesRequest, message_create_params.MessageCreateParamsBase),
        (messages.MessagesRequest, beta_message_params.MessageCreateParamsBase),
        (messages.CountTokensRequest, message_count_tokens_params.MessageCountTokensParams),
        (messages.CountTokensRequest, beta_count_tokens_params.MessageCountTokensParams),
    ],
)
def test_every_parameter_of_the_official_package_is_known(schema, params):
    assert set(typing.get_type_hints(params)) - known(schema) == set()


def test_every_field_of_an_answer_may_be_sent_back_as_a_turn():
    fields = set(chat_completion_message.ChatCompletionMessage.model_fields)
    assert fields - known(ChatMessage) == set()


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (messages.CacheControl, "CacheControlEphemeralParam"),
        (messages.Diagnostics, "DiagnosticsParam"),
        (messages.ImageBlock, "ImageBlockParam"),
        (messages.ImageSource, "Base64ImageSourceParam"),
        (messages.InputMessage, "SystemMessageParam"),
        (messages.InputMessage, "UserMessageParam"),
        (messages.Metadata, "MetadataParam"),
        (messages.OutputConfig, "OutputConfigParam"),
        (messages.RedactedThinkingBlock, "RedactedThinkingBlockParam"),
        (messages.TextBlock, "TextBlockParam"),
        (messages.Thinking, "ThinkingConfigAdaptiveParam"),
        (messages.Thinking, "ThinkingConfigEnabledParam"),
        (messages.ThinkingBlock, "ThinkingBlockParam"),
        (messages.Tool, "ToolParam"),
        (messages.ToolChoice, "ToolChoiceAutoParam"),
        (messages.ToolResultBlock, "ToolResultBlockParam"),
        (messages.ToolUseBlock, "ToolUseBlockParam"),
    ],
)
def test_every_field_of_anthropic_s_parts_is_known(schema, name):
    for params in (
        getattr(anthropic.types, name),
        getattr(anthropic.types.beta, f"Beta{name}"),
    ):
        assert set(typing.get_type_hints(params)) - known(schema) == set()


@pytest.mark.parametrize(
    "schema",
    [
        ChatCompletionRequest,
        CompletionRequest,
        ChatMessage,
        messages.MessagesRequest,
        messages.InputMessage,
        messages.Tool,
    ],
)
def test_no_field_is_both_honoured_and_refused(schema):
    assert set(schema.model_fields) & set(schema.neutral) == set()
