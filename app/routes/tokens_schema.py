"""The bodies of `POST /tokenize` and `/detokenize`. Their fields are vLLM's."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from app.dialects.chat.schema import ChatMessage, ChatTool, TemplateOptions
from app.dialects.fields import Strict


class TokenizeRequest(Strict):
    """Asks for the tokens of a raw text (`prompt`) or of a conversation (`messages`)."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"add_generation_prompt": (True,)}

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = True
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, fail_fast=True)
    tools: list[ChatTool] | None = Field(default=None, fail_fast=True)
    chat_template_kwargs: TemplateOptions | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError(
                "missing", "exactly one of prompt and messages is required", {"field": "prompt"}
            )
        return self


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]] = Field(fail_fast=True)
