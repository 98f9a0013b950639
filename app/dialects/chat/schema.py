"""The body of `POST /v1/chat/completions`: the accepted fields and the refused ones."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from app.dialects.demands import Choice, ToolChoice, read_choice
from app.dialects.fields import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    ONE,
    ONE_OR_SEVERAL,
    SEVERAL,
    Fields,
    TokenLimit,
    Whole,
    unsupported,
)
from app.dialects.openai_fields import ApiRequest
from app.dialects.thinking import ThinkingFields
from app.dialects.tools import Function, OtherTool, tool_type


class TextPart(Fields):
    type: Literal["text"]
    text: str


class ImageUrl(Fields):
    url: str


class ImageUrlPart(Fields):
    type: Literal["image_url"]
    image_url: ImageUrl


class OtherPart(Fields):
    """A part of another type. Its text is shown, if it has one."""

    type: str
    text: Any = None


def _part_type(value: Any) -> str | None:
    """Returns the tag for a part's type, or None, which is an error, if it has no type."""
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    if not isinstance(kind, str):
        return None
    return f"({kind})" if kind in ("text", "image_url") else "(other)"


Part = Annotated[
    Annotated[TextPart, Tag("(text)")]
    | Annotated[ImageUrlPart, Tag("(image_url)")]
    | Annotated[OtherPart, Tag("(other)")],
    Discriminator(
        _part_type,
        custom_error_type="part",
        custom_error_message="Input should be an object with a type, such as 'text'",
    ),
]
Parts = Annotated[list[Part], Field(fail_fast=True, max_length=MAX_PARTS)]
Content = Annotated[Annotated[str, ONE] | Annotated[Parts, SEVERAL], ONE_OR_SEVERAL]


class CalledFunction(Fields):
    name: str = Field(min_length=1)
    arguments: str


class ToolCall(Fields):
    id: str
    type: Literal["function"] | None = None
    function: CalledFunction


class ChatMessage(Fields):
    """One message. Keys that clients carry from other providers are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, fail_fast=True, max_length=MAX_PARTS)
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
        if self.role == "tool" and self.tool_call_id is None:
            raise unsupported("tool_call_id", "messages of role 'tool' need it")
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise PydanticCustomError(
                "missing", "Input should be a string or a list", {"field": "content"}
            )
        return self


class ChatTool(Fields):
    type: Literal["function"]
    function: Function


AnyTool = Annotated[
    Annotated[ChatTool, Tag("(function)")] | Annotated[OtherTool, Tag("(other)")],
    Discriminator(tool_type),
]


class ChatFields(ThinkingFields):
    """The fields that a chat's prompt is made of."""

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True, max_length=MAX_MESSAGES)
    tools: list[AnyTool] | None = Field(default=None, fail_fast=True, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @model_validator(mode="after")
    def _end_is_clear(self) -> "ChatFields":
        last = self.messages[-1]
        if self.continue_final_message and (last.role != "assistant" or last.tool_calls):
            raise unsupported(
                "continue_final_message", "the last message must be the assistant's, without calls"
            )
        if self.add_generation_prompt is False and not self.continues:
            raise unsupported(
                "add_generation_prompt", "false is only allowed if the last message is continued"
            )
        return self

    @property
    def continues(self) -> bool:
        """Returns whether the answer goes on with the last message, which is the assistant's."""
        return self.continue_final_message is not False and self.messages[-1].role == "assistant"

    @property
    def choice(self) -> Choice:
        return read_choice(self.tool_choice)

    @property
    def offered(self) -> list[tuple[int, ChatTool]]:
        """Returns the tools that the model may call, with their indices in the request."""
        if self.tool_choice == "none":
            return []
        several = enumerate(self.tools or [])
        return [(index, tool) for index, tool in several if isinstance(tool, ChatTool)]


class ChatCompletionRequest(ChatFields, ApiRequest):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **ApiRequest.neutral,
        "add_special_tokens": (False,),
        "audio": (),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "store": (False,),
        "web_search_options": (),
    }

    max_tokens: TokenLimit = None
    max_completion_tokens: TokenLimit = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise unsupported("top_logprobs", "it is only allowed if logprobs is true")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_field(self) -> str:
        """Returns the name of the field that limits the answer's tokens."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
