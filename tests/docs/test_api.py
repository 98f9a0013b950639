"""docs/api.md describes every field and every endpoint."""

import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from app.dialects.anthropic.schema import CountTokensRequest, MessagesRequest
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.completions.schema import CompletionRequest
from app.dialects.decisions.schema import DecisionsRequest
from app.dialects.responses.schema import ResponseRequest
from app.dialects.sampling_fields import SamplingFields
from app.dialects.systemone.schema import SystemOneRequest
from app.routes.tokens_schema import DetokenizeRequest, TokenizeChat, TokenizeText
from app.server import ENDPOINTS

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def named_in(heading):
    """Returns everything in backticks under the first heading that contains `heading`."""
    section = next(s for s in re.split(r"^## ", PAGE, flags=re.M) if heading in s.splitlines()[0])
    return set(re.findall(r"`([^`]+)`", section))


CHAT = named_in("/v1/chat/completions") | {"model"}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (ChatCompletionRequest, CHAT),
        (CompletionRequest, named_in("/v1/completions") | set(SamplingFields.model_fields)),
        (ResponseRequest, named_in("/v1/responses") | set(SamplingFields.model_fields)),
        (MessagesRequest, named_in("/v1/messages") | set(SamplingFields.model_fields)),
        (CountTokensRequest, named_in("/v1/messages")),
        (DecisionsRequest, named_in("/v1/decisions")),
        (SystemOneRequest, named_in("/v1/systemone")),
        (TokenizeText, named_in("/tokenize")),
        (TokenizeChat, named_in("/tokenize")),
        (DetokenizeRequest, named_in("/tokenize")),
    ],
)
def test_every_field_is_described(schema, named):
    fields = {*schema.model_fields, *schema.neutral}
    assert fields - named - {"model"} == set()


@pytest.mark.parametrize("module", ENDPOINTS)
def test_every_endpoint_is_described(module):
    for route in module.router.routes:
        assert isinstance(route, APIRoute)
        if route.include_in_schema and route.path != "/":
            assert route.path.replace("{name:path}", "{id}") in PAGE
