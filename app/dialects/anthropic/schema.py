"""The bodies of `POST /v1/messages` and `/v1/messages/count_tokens`.

They have Anthropic's fields, including those of beta versions. The objects inside a request declare
only what has an effect: `cache_control`, for example, is ignored anywhere, because prefixes are
kept without being marked.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from app.answer.constraint import Demand
from app.dialects.demands import Choice, by_schema
from app.dialects.fields import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    ONE,
    ONE_OR_SEVERAL,
    SEVERAL,
    Fields,
    JsonObject,
    JsonValue,
    TokenBudget,
    Whole,
    quoted,
    unsupported,
)
from app.dialects.sampling_fields import MAX_STOPS, SamplingFields, Stop
from app.dialects.thinking import BudgetFields
from app.dialects.tools import OtherTool, ToolName, checked_if_strict

B = TypeVar("B")


class TextBlock(Fields):
    type: Literal["text"]
    text: str


class ImageSource(Fields):
    type: Literal["base64"]
    media_type: str | None = None  # the file itself says its format
    data: str

    @field_validator("type", mode="before")
    @classmethod
    def _no_source_elsewhere(cls, value: Any) -> Any:
        if value in ("url", "file"):
            raise unsupported(
                "", f'{quoted(value)} is not supported, as no image is fetched; allowed: "base64"'
            )
        return value


class ImageBlock(Fields):
    type: Literal["image"]
    source: ImageSource


class DocumentBlock(Fields):
    """A file, of which the model is shown the text. A PDF's cannot be read."""

    type: Literal["document"]
    title: str | None = None
    context: str | None = None
    source: JsonObject


class ThinkingBlock(Fields):
    """A thought of an earlier answer. Its signature is not checked, since Easel signs nothing."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Fields):
    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: JsonObject


class OtherBlock(Fields):
    """A block of another type, such as those of Anthropic's server tools. Its texts are shown."""

    type: str
    text: Any = None
    content: JsonValue = None


def _tagged(*kinds: str) -> Discriminator:
    """Returns a discriminator that selects a block's class by its `type`."""

    def tag(value: Any) -> str | None:
        kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
        if not isinstance(kind, str):
            return None
        return f"({kind})" if kind in kinds else "(other)"

    return Discriminator(
        tag,
        custom_error_type="block",
        custom_error_message="Input should be an object with a type, such as 'text'",
    )


_TaggedOther = Annotated[OtherBlock, Tag("(other)")]
_Shown = (
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[ImageBlock, Tag("(image)")]
    | Annotated[DocumentBlock, Tag("(document)")]
)
ResultBlocks = Annotated[
    list[Annotated[_Shown | _TaggedOther, _tagged("text", "image", "document")]],
    Field(fail_fast=True, max_length=MAX_PARTS),
]
SystemBlocks = Annotated[list[TextBlock], Field(fail_fast=True, max_length=MAX_PARTS)]


def _blocks(content: str | Sequence[B] | None) -> Sequence[B | TextBlock]:
    """Returns the blocks without texts that are empty or only white space, which clients send."""
    if isinstance(content, str | None):
        return [TextBlock(type="text", text=content)] if content and content.strip() else []
    return [each for each in content if not isinstance(each, TextBlock) or each.text.strip()]


class ToolResultBlock(Fields):
    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        Annotated[Annotated[str, ONE] | Annotated[ResultBlocks, SEVERAL], ONE_OR_SEVERAL] | None
    ) = None
    is_error: bool | None = None

    @property
    def blocks(self) -> "Sequence[AnyBlock]":
        return _blocks(self.content)


AnyBlock = Annotated[
    _Shown
    | Annotated[ThinkingBlock, Tag("(thinking)")]
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")]
    | _TaggedOther,
    _tagged("text", "image", "document", "thinking", "tool_use", "tool_result"),
]
MessageBlocks = Annotated[list[AnyBlock], Field(fail_fast=True, max_length=MAX_PARTS)]

# Blocks that have a meaning only in the other side's messages.
_MISPLACED_BLOCKS = {
    "user": (ThinkingBlock, ToolUseBlock),
    "assistant": (ImageBlock, DocumentBlock, ToolResultBlock),
    "system": (ImageBlock, DocumentBlock, ThinkingBlock, ToolUseBlock, ToolResultBlock),
}


class InputMessage(Fields):
    """One message. System messages may come anywhere, because Claude Code sends them later too."""

    role: Literal["user", "assistant", "system"]
    content: (
        Annotated[Annotated[str, ONE] | Annotated[MessageBlocks, SEVERAL], ONE_OR_SEVERAL] | None
    )

    @model_validator(mode="after")
    def _blocks_fit_the_role(self) -> "InputMessage":
        for block in self.content if isinstance(self.content, list) else []:
            if isinstance(block, _MISPLACED_BLOCKS[self.role]):
                raise unsupported(
                    "content",
                    f"a block of type {block.type!r} is not supported in a message of role "
                    f"{self.role!r}",
                )
        return self

    @property
    def blocks(self) -> Sequence[AnyBlock]:
        return _blocks(self.content)


class ClientTool(Fields):
    """A tool that the client runs. Tools of other types have no schema that could be shown."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: JsonObject
    strict: bool | None = None

    _schema = model_validator(mode="after")(checked_if_strict("input_schema"))


def _tool_type(value: Any) -> str:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return "(custom)" if kind in (None, "custom") else "(other)"


AnyTool = Annotated[
    Annotated[ClientTool, Tag("(custom)")] | Annotated[OtherTool, Tag("(other)")],
    Discriminator(_tool_type),
]


class MessagesToolChoice(Fields):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _names_its_tool(self) -> "MessagesToolChoice":
        if self.type == "tool" and self.name is None:
            raise unsupported("name", 'the type "tool" needs it')
        return self

    @property
    def choice(self) -> Choice:
        if self.type == "tool" and self.name is not None:
            return Choice("required", (self.name,), single=True)
        return Choice(
            "required" if self.type == "any" else "none" if self.type == "none" else "auto"
        )


class Thinking(Fields):
    """Adaptive thinking is the same as enabled: the model itself decides how much it thinks."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: TokenBudget = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Fields):
    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Fields):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"task_budget": ()}

    format: OutputFormat | None = None


class CountTokensRequest(BudgetFields):
    """The fields that a prompt is made of."""

    hints: ClassVar[frozenset[str]] = frozenset(
        {
            "betas",
            "cache_control",
            "context_management",
            "diagnostics",
            "metadata",
            "service_tier",
            "speed",
            "user_profile_id",
            "workspace_id",
        }
    )
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
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
        "thread": (),
    }

    model: str | None = None
    messages: list[InputMessage] = Field(min_length=1, fail_fast=True, max_length=MAX_MESSAGES)
    system: (
        Annotated[Annotated[str, ONE] | Annotated[SystemBlocks, SEVERAL], ONE_OR_SEVERAL] | None
    ) = None
    tools: list[AnyTool] | None = Field(default=None, fail_fast=True, max_length=MAX_TOOLS)
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # the older place of output_config.format

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> "CountTokensRequest":
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
        budget = self.thought_budget
        if self.thinking is None:
            return bool(budget)
        return self.thinking.type != "disabled" and budget != 0

    def _nested_budgets(self) -> dict[str, int | None]:
        return {"thinking": None if self.thinking is None else self.thinking.budget_tokens}

    @property
    def text_demand(self) -> Demand | None:
        """Returns what the request demands of the answer's text."""
        if self.output_config is not None and self.output_config.format is not None:
            schema = self.output_config.format.schema_
            return Demand(by_schema(schema), "output_config.format.schema")
        if self.output_format is not None:
            return Demand(by_schema(self.output_format.schema_), "output_format.schema")
        return None

    @property
    def choice(self) -> Choice:
        return Choice("auto") if self.tool_choice is None else self.tool_choice.choice

    @property
    def parallel_calls(self) -> bool:
        """Returns whether an answer may have several calls."""
        return self.tool_choice is None or not self.tool_choice.disable_parallel_tool_use

    @property
    def offered(self) -> list[tuple[int, ClientTool]]:
        """Returns the tools that the model may call, with their indices in the request."""
        if self.tool_choice is not None and self.tool_choice.type == "none":
            return []
        several = enumerate(self.tools or [])
        return [(index, tool) for index, tool in several if isinstance(tool, ClientTool)]


class MessagesRequest(CountTokensRequest, SamplingFields):
    max_tokens: Whole = Field(ge=1)
    temperature: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    stop_sequences: Annotated[list[Stop], Field(fail_fast=True, max_length=MAX_STOPS)] | None = None
    stream: bool | None = None

    @property
    def shows_thoughts(self) -> bool:
        return self.thinking is None or self.thinking.display != "omitted"
