"""The bodies of `POST /tokenize` and `/detokenize`. Their fields are vLLM's."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, RootModel, Tag

from app.dialects.chat.schema import ChatFields
from app.dialects.fields import MAX_TOKEN_IDS, RequestFields


class TokenizeText(RequestFields):
    """Asks for the tokens of a raw text."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None


class TokenizeChat(ChatFields):
    """Asks for the tokens of a conversation's prompt."""

    model: str | None = None


def _form(value: Any) -> str:
    chat = isinstance(value, TokenizeChat) or (isinstance(value, Mapping) and "messages" in value)
    return "(chat)" if chat else "(text)"


class TokenizeRequest(RootModel[Any]):
    """Asks for the tokens of a raw text (`prompt`) or of a conversation (`messages`)."""

    root: Annotated[
        Annotated[TokenizeText, Tag("(text)")] | Annotated[TokenizeChat, Tag("(chat)")],
        Discriminator(_form),
    ]


class DetokenizeRequest(RequestFields):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]] = Field(fail_fast=True, max_length=MAX_TOKEN_IDS)
