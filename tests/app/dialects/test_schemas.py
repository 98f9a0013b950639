"""Every field of the official packages' requests is known: it has an effect or is named."""

import typing

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_tokens_params
from anthropic.types.beta import message_create_params as beta_message_params
from openai.types import completion_create_params, decision_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params

from app.dialects.anthropic.schema import CountTokensRequest, MessagesRequest
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.completions.schema import CompletionRequest
from app.dialects.decisions.schema import DecisionsRequest
from app.dialects.fields import Fields, RequestFields
from app.dialects.responses.schema import ResponseRequest
from app.dialects.systemone.schema import SystemOneRequest
from app.prompting.vocabulary import Vocabulary
from app.routes.tokens_schema import DetokenizeRequest, TokenizeChat, TokenizeText
from engine.config import DEMO_MODEL_PATH

REQUESTS = [
    ChatCompletionRequest,
    CompletionRequest,
    MessagesRequest,
    CountTokensRequest,
    ResponseRequest,
    DecisionsRequest,
    SystemOneRequest,
    TokenizeChat,
    TokenizeText,
    DetokenizeRequest,
]


def all_fields_classes(base=Fields):
    for each in base.__subclasses__():
        yield each
        yield from all_fields_classes(each)


@pytest.mark.parametrize(
    ("schema", "params"),
    [
        (ChatCompletionRequest, chat_params.CompletionCreateParamsBase),
        (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
        (MessagesRequest, message_create_params.MessageCreateParamsBase),
        (MessagesRequest, beta_message_params.MessageCreateParamsBase),
        (CountTokensRequest, message_count_tokens_params.MessageCountTokensParams),
        (CountTokensRequest, beta_count_tokens_params.MessageCountTokensParams),
        (ResponseRequest, response_create_params.ResponseCreateParamsBase),
        (ResponseRequest, response_create_params.ResponseCreateParamsStreaming),
        (DecisionsRequest, decision_create_params.DecisionCreateParams),
    ],
)
def test_every_parameter_of_the_official_package_is_known(schema, params):
    known = {*schema.model_fields, *schema.neutral, *schema.hints}
    assert set(typing.get_type_hints(params)) - known == set()


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": "x"}]}),
        (CompletionRequest, {"prompt": "x"}),
        (MessagesRequest, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
        (ResponseRequest, {"input": "x"}),
    ],
)
def test_sampling_options_reach_the_worker_in_every_dialect(schema, body):
    vocabulary = Vocabulary(DEMO_MODEL_PATH / "tokenizer.json")
    options = {
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "bad_words": ["red", "", "1"],
        "stop_token_ids": [7.0, 8],
    }
    sampling = schema.model_validate({**body, **options}).sampling(5, vocabulary)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.5)
    assert sampling.stop_token_ids == [7, 8]
    words = [vocabulary.encode_literally(word) for word in ("red", " red", "1", " 1")]
    assert sampling.banned_tokens == sorted(token for (token,) in words)
    neutral = {"min_p": 0, "repetition_penalty": 1, "bad_words": [], "stop_token_ids": []}
    plain = schema.model_validate(body).sampling(5, vocabulary)
    for nothing in (neutral, dict.fromkeys(options)):
        assert schema.model_validate({**body, **nothing}).sampling(5, vocabulary) == plain


@pytest.mark.parametrize("schema", REQUESTS)
def test_a_field_is_honoured_or_ignored_or_limited_to_values_that_ask_for_nothing(schema):
    kinds = [set(schema.model_fields), set(schema.neutral), set(schema.hints)]
    assert sum(len(kind) for kind in kinds) == len(set().union(*kinds))


@pytest.mark.parametrize(
    "schema", sorted({*all_fields_classes()} - {RequestFields}, key=str), ids=str
)
def test_null_means_that_an_optional_field_is_not_set(schema):
    for name, field in schema.model_fields.items():
        if not field.is_required():
            assert type(None) in typing.get_args(field.annotation) or field.annotation in (
                typing.Any,
                type(None),
            ), name
