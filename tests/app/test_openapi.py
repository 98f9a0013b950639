"""The OpenAPI document describes exactly the bodies that the endpoints accept."""

import pytest
from jsonschema import Draft202012Validator
from schemathesis import openapi

from app.openapi import BODIES
from app.server import create_app
from app.settings import Settings

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome"]}}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "a"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "b"},
]
TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "a", "citations": []}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "b"}]},
]
ITEMS = [
    {"role": "user", "content": "a"},
    {
        "type": "function_call",
        "call_id": "a",
        "name": "f",
        "arguments": "{}",
        "status": "completed",
    },
    {"type": "function_call_output", "call_id": "a", "output": "b"},
    {"type": "item_reference", "id": "x"},
]
QUESTIONS = [
    {"type": "predicate", "instructions": [{"type": "input_json", "data": {"a": 1}}]},
    {"type": "choice", "instructions": "q", "choices": [{"value": True}, {"value": "true"}]},
    {"type": "score", "name": "s", "instructions": "q", "levels": [{"label": c} for c in "ab"]},
]
ASKED = {
    "n": {"type": "noul", "instructions": "q", "criteria": {"true": "t"}},
    "c": {"type": "choice", "instructions": {"a": 1}, "criteria": {"a": None, "b": "d"}},
    "s": {"type": "score", "instructions": "q", "criteria": ["a", "b"]},
}
ANTHROPIC_TOOL = {"name": "f", "input_schema": SCHEMA}
GOOD = [
    (
        "/v1/chat/completions",
        {"messages": CHAT, "tools": [{"type": "function", "function": FUNCTION}]},
    ),
    (
        "/v1/chat/completions",
        {"messages": CHAT, "store": False, "audio": None, "stop": ["a"], "n": 2},
    ),
    ("/v1/completions", {"prompt": "a", "best_of": 1, "max_tokens": 1, "stream": True}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "logit_bias": {"5": -1.5}}),
    ("/v1/responses", {"input": "a", "include": ["message.output_text.logprobs"]}),
    (
        "/v1/responses",
        {"input": ITEMS, "tools": [{"type": "function", **FUNCTION}, {"type": "x", "y": 1}]},
    ),
    ("/v1/messages", {"model": "m", "max_tokens": 1, "messages": TURNS, "tools": [ANTHROPIC_TOOL]}),
    ("/v1/messages/count_tokens", {"model": "m", "messages": TURNS, "speed": "standard"}),
    ("/v1/decisions", {"input": ITEMS[:3], "questions": QUESTIONS, "prompt_cache_key": "k"}),
    ("/v1/systemone", {"state": {"a": [1]}, "questions": ASKED, "joint": False}),
    ("/tokenize", {"prompt": "a"}),
    ("/tokenize", {"messages": CHAT, "add_generation_prompt": True}),
    ("/detokenize", {"tokens": [1, 2]}),
]
BAD = [
    ("/v1/chat/completions", {"messages": CHAT, "colour": "red"}),
    ("/v1/chat/completions", {"messages": CHAT, "store": True}),
    ("/v1/chat/completions", {"messages": CHAT, "response_format": {"type": "xml"}}),
    ("/v1/completions", {"prompt": [1, "a"]}),
    ("/v1/responses", {"input": "a", "text": {"format": {"type": "xml"}}}),
    ("/v1/messages", {"model": "m", "messages": TURNS}),
    ("/detokenize", {}),
]


@pytest.fixture(scope="module")
def document():
    return create_app(Settings()).openapi()


def validator(document, path):
    content = document["paths"][path]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": document["components"]})


def test_the_document_is_valid_openapi(document):
    openapi.from_dict(document).validate()


def test_every_post_has_a_body_and_no_other_method_has_one(document):
    operations = [(path, verb) for path, each in document["paths"].items() for verb in each]
    assert {path for path, verb in operations if verb == "post"} == set(BODIES)
    for path, verb in operations:
        assert ("requestBody" in document["paths"][path][verb]) == (verb == "post")


@pytest.mark.parametrize(("path", "body"), GOOD)
def test_a_body_that_an_endpoint_accepts_fits_its_schema(document, path, body):
    BODIES[path].model_validate(body)
    validator(document, path).validate(body)


@pytest.mark.parametrize(("path", "body"), BAD)
def test_a_body_that_an_endpoint_refuses_for_one_field_does_not_fit_its_schema(
    document, path, body
):
    with pytest.raises(ValueError, match="validation error"):
        BODIES[path].model_validate(body)
    assert not validator(document, path).is_valid(body)


def test_unsupported_fields_show_the_values_that_are_accepted(document):
    fields = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert fields["function_call"] == {"enum": [None, "none", "auto"]}
