"""The bodies of `POST /v1/messages` and `/v1/messages/count_tokens`.

They have Anthropic's fields, including those of beta versions. Some fields are accepted without an
effect:

- `cache_control`: prefixes are kept without being marked.
- `service_tier`, `metadata`, `diagnostics`: nothing of a request is kept.
- `effort`, `budget_tokens`: the model has no degrees of thinking, and `max_tokens` limits thoughts
  and answer together.
- `eager_input_streaming`: a call's input is sent when it is complete and known to be JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from app.answer.tool_schemas import checked_schema
from app.dialects.fields import (
    ONE,
    ONE_OR_SEVERAL,
    SEVERAL,
    JsonObject,
    SamplingFields,
    Strict,
    quoted,
    unsupported,
)
from app.dialects.tools import ToolName

MAX_STOP_SEQUENCES = 64

B = TypeVar("B")


class CacheControl(Strict):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None
    scope: str | None = None  # Claude Code sends it


class ContentBlock(Strict):
    """The base of content blocks that may have `cache_control`."""

    cache_control: CacheControl | None = None


class TextBlock(ContentBlock):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"citations": ([],)}

    type: Literal["text"]
    text: str


class ImageSource(Strict):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str

    @field_validator("type", mode="before")
    @classmethod
    def _no_source_elsewhere(cls, value: Any) -> Any:
        if value in ("url", "file"):
            raise unsupported(
                "", f'{quoted(value)} is not supported, as no image is fetched; allowed: "base64"'
            )
        return value


class ImageBlock(ContentBlock):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "transformations": ({}, {"oversized_image": "downsize"}),
    }

    type: Literal["image"]
    source: ImageSource

    @property
    def url(self) -> str:
        return f"data:{self.source.media_type};base64,{self.source.data}"


class ThinkingBlock(Strict):
    """A thought of an earlier answer. Its signature is not checked, since Easel signs nothing."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinkingBlock(Strict):
    """A thought that only Anthropic's servers can read. It is not shown to the model."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(ContentBlock):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "caller": ({"type": "direct"},),
        "toolset_name": (),
    }

    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: JsonObject


def _tagged(*kinds: str) -> Discriminator:
    """Returns a discriminator that selects a block's class by its `type`."""

    def tag(value: Any) -> str | None:
        kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
        return f"({kind})" if kind in kinds else None

    return Discriminator(
        tag,
        custom_error_type="block",
        custom_error_message=f"Input should be a block of type {', '.join(kinds)}",
    )


_TaggedText = Annotated[TextBlock, Tag("(text)")]
_TaggedImage = Annotated[ImageBlock, Tag("(image)")]
SystemBlocks = Annotated[list[Annotated[_TaggedText, _tagged("text")]], Field(fail_fast=True)]
ResultBlocks = Annotated[
    list[Annotated[_TaggedText | _TaggedImage, _tagged("text", "image")]], Field(fail_fast=True)
]


def _blocks(content: str | Sequence[B] | None) -> list[B | TextBlock]:
    """Returns the blocks without texts that are empty or only white space, which clients send."""
    if isinstance(content, str | None):
        return [TextBlock(type="text", text=content)] if content and content.strip() else []
    return [each for each in content if not isinstance(each, TextBlock) or each.text.strip()]


class ToolResultBlock(ContentBlock):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"toolset_name": ()}

    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        Annotated[Annotated[str, ONE] | Annotated[ResultBlocks, SEVERAL], ONE_OR_SEVERAL] | None
    ) = None
    is_error: bool | None = None

    @property
    def blocks(self) -> list[TextBlock | ImageBlock]:
        return _blocks(self.content)


AnyBlock = Annotated[
    _TaggedText
    | _TaggedImage
    | Annotated[ThinkingBlock, Tag("(thinking)")]
    | Annotated[RedactedThinkingBlock, Tag("(redacted_thinking)")]
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")],
    _tagged("text", "image", "thinking", "redacted_thinking", "tool_use", "tool_result"),
]
MessageBlocks = Annotated[list[AnyBlock], Field(fail_fast=True)]

_ALLOWED_BLOCKS = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}


class InputMessage(Strict):
    """One message. System messages may come anywhere, because Claude Code sends them later too."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"clear_at": ("never",), "output_config": ()}

    role: Literal["user", "assistant", "system"]
    content: Annotated[Annotated[str, ONE] | Annotated[MessageBlocks, SEVERAL], ONE_OR_SEVERAL]

    @model_validator(mode="after")
    def _blocks_fit_the_role(self) -> "InputMessage":
        allowed = _ALLOWED_BLOCKS[self.role]
        for block in [] if isinstance(self.content, str) else self.content:
            if block.type not in allowed:
                raise unsupported(
                    "content",
                    f"a block of type {block.type!r} is not supported in a message of role "
                    f"{self.role!r}; allowed: {', '.join(allowed)}",
                )
        return self

    @property
    def blocks(self) -> list[AnyBlock]:
        return _blocks(self.content)


class ClientTool(Strict):
    """A tool that the client runs. Anthropic's server tools and typed tools are refused."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"],),
        "defer_loading": (False,),
        "input_examples": ([],),
    }

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: JsonObject
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    cache_control: CacheControl | None = None

    _schema = field_validator("input_schema")(checked_schema)

    @field_validator("type", mode="before")
    @classmethod
    def _only_custom_tools(cls, value: Any) -> Any:
        if value not in (None, "custom"):
            raise unsupported(
                "", f'tools of type {quoted(value)} are not supported; allowed: null, "custom"'
            )
        return value


class MessagesToolChoice(Strict):
    type: Literal["auto", "none"]
    disable_parallel_tool_use: bool | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _supported_choice(cls, value: Any) -> Any:
        if value not in ("auto", "none"):
            raise unsupported("", f'{quoted(value)} is not supported; allowed: "auto", "none"')
        return value


class Thinking(Strict):
    """Adaptive thinking is the same as enabled: the model itself decides how much it thinks."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"block_binding": ({},)}

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(default=None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class OutputConfig(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"format": (), "task_budget": ()}

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class KeptThinking(Strict):
    type: Literal["thinking_turns", "all"]
    value: int | None = Field(default=None, ge=1)


class ClearThinking(Strict):
    """Has no effect, because the chat template never shows thoughts of turns before the last."""

    type: Literal["clear_thinking_20251015"]
    keep: KeptThinking | None = None

    @field_validator("keep", mode="before")
    @classmethod
    def _all_as_object(cls, value: Any) -> Any:
        return {"type": "all"} if value == "all" else value


class ContextManagement(Strict):
    edits: list[ClearThinking] | None = Field(default=None, fail_fast=True)


class Metadata(Strict):
    user_id: str | None = None


class Diagnostics(Strict):
    """Asks why the cache was missed. It has no effect: `usage` has the number of cached tokens."""

    previous_message_id: str | None = None


class CountTokensRequest(Strict):
    """The fields that a prompt is made of."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "betas": ([],),
        "billing_policy": (
            {"type": "billing_policy"},
            {"type": "billing_policy", "bill_to": "self"},
        ),
        "compaction": (),
        "container": (),
        "fallback_credit_token": (),
        "fallbacks": ("default",),  # nothing is declined, so nothing falls back
        "inference_geo": (),
        "mcp_servers": ([],),
        "output_format": (),
        "speed": ("standard",),
        "thread": (),
        "user_profile_id": (),
        "workspace_id": (),
    }

    model: str | None = None
    messages: list[InputMessage] = Field(min_length=1, fail_fast=True)
    system: (
        Annotated[Annotated[str, ONE] | Annotated[SystemBlocks, SEVERAL], ONE_OR_SEVERAL] | None
    ) = None
    tools: list[ClientTool] | None = Field(default=None, fail_fast=True)
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None
    cache_control: CacheControl | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "CountTokensRequest":
        if self.tool_choice is not None and self.tool_choice.type == "auto" and not self.tools:
            raise unsupported("tool_choice", '"auto" is only allowed with tools')
        spoken = [each for each in self.messages if each.role != "system"]
        if not spoken or spoken[-1].role != "user" or not spoken[-1].blocks:
            raise unsupported(
                "messages",
                "the last message must be a user's and must not be empty; continuing an "
                "assistant's message is not supported",
            )
        return self

    @property
    def thinks(self) -> bool:
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def offered(self) -> list[ClientTool]:
        """Returns the tools that the model may call."""
        none = self.tool_choice is not None and self.tool_choice.type == "none"
        return [] if none else self.tools or []


class MessagesRequest(CountTokensRequest, SamplingFields):
    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    stop_sequences: (
        Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(fail_fast=True, max_length=MAX_STOP_SEQUENCES),
        ]
        | None
    ) = None
    stream: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    diagnostics: Diagnostics | None = None

    @property
    def shows_thoughts(self) -> bool:
        return self.thinking is None or self.thinking.display != "omitted"
