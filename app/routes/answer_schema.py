"""The answers of the endpoints that belong to no dialect."""

from typing import Literal

from app.dialects.answer_fields import Sent


class Name(Sent):
    name: Literal["easel"]
    version: str


class Version(Sent):
    version: str


class Health(Sent):
    status: str


class Tokens(Sent):
    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizedText(Sent):
    prompt: str


class Model(Sent):
    """The served model. Its lengths in tokens are null until it is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["easel"]
    context_length: int | None
    max_model_len: int | None
    canvas_length: int | None
    input_modalities: list[Literal["text", "image"]]


class ModelList(Sent):
    object: Literal["list"]
    data: list[Model]


class ModelInfo(Sent):
    """The served model in Anthropic's form."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int | None
    max_tokens: int | None


class ModelPage(Sent):
    data: list[ModelInfo]
    has_more: Literal[False]
    first_id: str | None
    last_id: str | None
