"""The body of `POST /v1/chat/completions`: the accepted fields and the refused ones."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from app.dialects.fields import (
    MAX_TOP_LOGPROBS,
    ONE,
    ONE_OR_SEVERAL,
    SEVERAL,
    ApiRequest,
    Strict,
    quoted,
    thinks,
    unsupported,
)
from app.dialects.tools import Function, ToolChoice


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"detail": ("auto",)}

    url: str


class ImageUrlPart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


def _part_type(value: Any) -> str | None:
    """Returns the tag for a part's type, or None, which is an error, for an unknown type."""
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return f"({kind})" if kind in ("text", "image_url") else None


Part = Annotated[
    Annotated[TextPart, Tag("(text)")] | Annotated[ImageUrlPart, Tag("(image_url)")],
    Discriminator(
        _part_type,
        custom_error_type="part",
        custom_error_message="Input should be a part of type 'text' or 'image_url'",
    ),
]
Parts = Annotated[list[Part], Field(min_length=1, fail_fast=True)]
Content = Annotated[Annotated[str, ONE] | Annotated[Parts, SEVERAL], ONE_OR_SEVERAL]


class CalledFunction(Strict):
    name: str = Field(min_length=1)
    arguments: str
    parsed_arguments: Any = None  # OpenAI's SDK adds it to the answers that it reads


class ToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # some clients send back what they streamed


class ChatMessage(Strict):
    """One message. Every field of an answer that SDKs send back is accepted."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "parsed": (),  # OpenAI's SDK adds it for JSON formats
        "refusal": (),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, fail_fast=True)
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> "ChatMessage":
        if self.role != "assistant":
            for field in ("tool_calls", "reasoning_content", "reasoning"):
                if getattr(self, field):
                    raise unsupported(
                        field, f"only a message of role 'assistant' may have it, not {self.role!r}"
                    )
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise unsupported(
                "tool_call_id", "messages of role 'tool' need it, and no others may have it"
            )
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError(
                "missing", "Input should be a string or a list", {"field": "content"}
            )
        return self


class ChatTool(Strict):
    type: Literal["function"]
    function: Function


class TemplateOptions(Strict):
    """`chat_template_kwargs`, with the only option that the checkpoint's template has."""

    enable_thinking: bool | None = None


class ChatCompletionRequest(ApiRequest):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory",),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    tools: list[ChatTool] | None = Field(default=None, fail_fast=True)
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    chat_template_kwargs: TemplateOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None  # has no effect: prefixes are kept without a key
    safety_identifier: str | None = None  # has no effect, like `user`

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise unsupported("top_logprobs", "it is only allowed if logprobs is true")
        if self.tool_choice == "auto" and not self.tools:
            raise unsupported("tool_choice", '"auto" is only allowed with tools')
        options, effort = self.chat_template_kwargs, self.reasoning_effort
        wanted = None if options is None else options.enable_thinking
        if wanted is not None and effort is not None and wanted != thinks(effort):
            raise unsupported(
                "reasoning_effort",
                f"{quoted(effort)} contradicts chat_template_kwargs.enable_thinking, which is "
                f"{quoted(wanted)}",
            )
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def thinking(self) -> bool:
        options = self.chat_template_kwargs
        if options is not None and options.enable_thinking is not None:
            return options.enable_thinking
        return thinks(self.reasoning_effort)

    @property
    def offered(self) -> list[ChatTool]:
        """Returns the tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []
