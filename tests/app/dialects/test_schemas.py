"""Every field of the official packages is known: it is accepted, or refused by its name."""

import typing

import anthropic.types
import anthropic.types.beta
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_tokens_params
from anthropic.types.beta import message_create_params as beta_message_params
from openai.types import completion_create_params, shared_params
from openai.types import responses as official
from openai.types.chat import chat_completion_message
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params, response_input_item_param
from openai.types.responses import response_reasoning_item_param as reasoning_params

from app.answer.tool_schemas import strict_validator
from app.dialects.anthropic import schema as messages
from app.dialects.chat.schema import ChatCompletionRequest, ChatMessage
from app.dialects.completions.schema import CompletionRequest
from app.dialects.responses import items as response_items
from app.dialects.responses import schema as responses
from app.dialects.responses.schema import ResponseRequest
from app.prompting.conversation import Tool


def known_fields(schema):
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
        (ResponseRequest, response_create_params.ResponseCreateParamsBase),
        (ResponseRequest, response_create_params.ResponseCreateParamsStreaming),
        (responses.Reasoning, shared_params.Reasoning),
        (responses.TextConfig, official.ResponseTextConfigParam),
        (responses.FunctionTool, official.FunctionToolParam),
        (responses.ResponseStreamOptions, response_create_params.StreamOptions),
        (response_items.MessageItem, official.EasyInputMessageParam),
        (response_items.MessageItem, response_input_item_param.Message),
        (response_items.MessageItem, official.ResponseOutputMessageParam),
        (response_items.FunctionCallItem, official.ResponseFunctionToolCallParam),
        (response_items.FunctionCallOutputItem, response_input_item_param.FunctionCallOutput),
        (response_items.ReasoningItem, official.ResponseReasoningItemParam),
        (response_items.ItemReference, response_input_item_param.ItemReference),
        (response_items.InputText, official.ResponseInputTextParam),
        (response_items.InputImage, official.ResponseInputImageParam),
        (response_items.OutputText, official.ResponseOutputTextParam),
        (response_items.Refusal, official.ResponseOutputRefusalParam),
        (response_items.SummaryText, reasoning_params.Summary),
        (response_items.ReasoningText, reasoning_params.Content),
    ],
)
def test_every_parameter_of_the_official_package_is_known(schema, params):
    assert set(typing.get_type_hints(params)) - known_fields(schema) == set()


def test_every_value_of_include_in_the_official_package_is_accepted():
    field = ResponseRequest.model_fields["include"].annotation
    ((values,),) = (
        typing.get_args(each) for each in typing.get_args(field) if each is not type(None)
    )
    assert set(typing.get_args(values)) == set(typing.get_args(official.ResponseIncludable))


def test_every_field_of_an_answer_may_be_sent_back():
    fields = set(chat_completion_message.ChatCompletionMessage.model_fields)
    assert fields - known_fields(ChatMessage) == set()


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
        (messages.ClientTool, "ToolParam"),
        (messages.MessagesToolChoice, "ToolChoiceAutoParam"),
        (messages.ToolResultBlock, "ToolResultBlockParam"),
        (messages.ToolUseBlock, "ToolUseBlockParam"),
    ],
)
def test_every_field_of_the_parts_of_anthropic_requests_is_known(schema, name):
    for params in (
        getattr(anthropic.types, name),
        getattr(anthropic.types.beta, f"Beta{name}"),
    ):
        assert set(typing.get_type_hints(params)) - known_fields(schema) == set()


@pytest.mark.parametrize(
    "schema",
    [
        ChatCompletionRequest,
        CompletionRequest,
        ChatMessage,
        messages.MessagesRequest,
        messages.InputMessage,
        messages.ClientTool,
        ResponseRequest,
        responses.FunctionTool,
        response_items.MessageItem,
        response_items.FunctionCallItem,
        response_items.FunctionCallOutputItem,
    ],
)
def test_no_field_is_both_accepted_and_refused(schema):
    assert set(schema.model_fields) & set(schema.neutral) == set()


def validator_of(schema):
    return strict_validator(Tool("f", None, schema, strict=True, field="parameters"))


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(?=a)(a+)+$", r"^(a|a)*\1$"])
@pytest.mark.parametrize("as_name", [True, False])
def test_a_pattern_that_backtracks_without_end_is_given_up(pattern, as_name):
    long = "a" * 60 + "b"
    schema = {"patternProperties": {pattern: True}, "additionalProperties": False}
    validator = validator_of(schema if as_name else {"pattern": pattern})
    with pytest.raises(ValueError, match=r"regex|match|unexpected"):
        validator.validate({long: 1} if as_name else long)


@pytest.mark.parametrize(
    "schema", [{"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}]
)
def test_a_schema_that_refers_to_itself_does_not_loop(schema):
    validator_of(schema).validate({"city": "Paris"})


def test_a_recursive_schema_is_checked_at_every_level():
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}}, "required": ["value"]}
    validator = validator_of(tree)
    validator.validate({"value": 1, "left": {"value": 2}})
    with pytest.raises(ValueError, match="value"):
        validator.validate({"value": 1, "left": {}})
