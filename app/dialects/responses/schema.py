"""The bodies of `POST /v1/responses` and `/v1/responses/input_tokens`.

Tools of other types than `function` and `namespace` are not shown to the model. They run in
OpenAI's service or in the client, and clients such as Codex send several with every request. The
response's `tools` shows which tools the model was offered.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from app.answer.constraint import Demand
from app.dialects.demands import TextFormat, ToolChoice
from app.dialects.fields import (
    MAX_MESSAGES,
    MAX_METADATA,
    MAX_NAME,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    ONE,
    ONE_OR_SEVERAL,
    SEVERAL,
    Fields,
    JsonValue,
    TokenBudget,
    TokenLimit,
    Whole,
    unsupported,
)
from app.dialects.items import AnyItem, InputItem, ItemReference, MessageItem
from app.dialects.sampling_fields import SamplingFields
from app.dialects.thinking import BudgetFields, Effort, thinks
from app.dialects.tools import Function, OtherTool, tool_type

LOGPROBS = "message.output_text.logprobs"


class FunctionTool(Function):
    type: Literal["function"]


class NamespaceTool(Fields):
    """A group of functions. A call gives back the function's name and that of the group."""

    type: Literal["namespace"]
    name: str = Field(min_length=1)
    tools: list[
        Annotated[
            Annotated[FunctionTool, Tag("(function)")] | Annotated[OtherTool, Tag("(other)")],
            Discriminator(tool_type),
        ]
    ] = Field(fail_fast=True, max_length=MAX_TOOLS)


def _tool_type(value: Any) -> str:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return "(namespace)" if kind == "namespace" else tool_type(value)


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("(function)")]
    | Annotated[NamespaceTool, Tag("(namespace)")]
    | Annotated[OtherTool, Tag("(other)")],
    Discriminator(_tool_type),
]
Summary = Literal["auto", "concise", "detailed"]


class Reasoning(Fields):
    effort: Effort | None = None
    max_tokens: TokenBudget = None
    summary: Summary | None = None
    generate_summary: Summary | None = None  # its older name


class TextConfig(Fields):
    format: TextFormat | None = None


Input = Annotated[
    Annotated[str, ONE]
    | Annotated[
        list[AnyItem], Field(min_length=1, fail_fast=True, max_length=MAX_MESSAGES), SEVERAL
    ],
    ONE_OR_SEVERAL,
]


Name = Annotated[str, Field(max_length=MAX_NAME)]


def _small(value: Any) -> Any:
    """Returns metadata. Raises ValueError if it is too large, because each event repeats it."""
    size = len(json.dumps(value, ensure_ascii=False))
    if size > MAX_METADATA:
        raise ValueError(f"it has {size} characters as JSON; at most {MAX_METADATA} are allowed")
    return value


class ResponseRequest(BudgetFields, SamplingFields):
    hints: ClassVar[frozenset[str]] = frozenset(
        {
            "client_metadata",
            "max_tool_calls",
            "prompt_cache_options",
            "prompt_cache_retention",
            "service_tier",
            "stream_options",
        }
    )
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "moderation": (),
        "prompt": (),
    }

    model: str | None = None
    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    tools: list[AnyTool] | None = Field(default=None, fail_fast=True, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    max_output_tokens: TokenLimit = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    # Only the log-probabilities have an effect. Others extend items that never occur here.
    include: list[str] | None = Field(default=None, fail_fast=True, max_length=MAX_TOOLS)
    # Nothing is cut off. A prompt that does not fit is an error with either value.
    truncation: Literal["auto", "disabled"] | None = None
    stream: bool | None = None
    # These fields have no effect, but are returned in the response.
    metadata: Annotated[JsonValue, AfterValidator(_small)] = None
    prompt_cache_key: Name | None = None
    safety_identifier: Name | None = None
    user: Name | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ResponseRequest":
        if self.top_logprobs and not self.wants_logprobs:
            raise unsupported("top_logprobs", f'it is only allowed if include has "{LOGPROBS}"')
        return self

    @property
    def items(self) -> list[InputItem | ItemReference]:
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=self.input)]
        return list(self.input)

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @property
    def text_demand(self) -> Demand | None:
        """Returns what the request demands of the answer's text."""
        if self.text is None or self.text.format is None:
            return None
        return self.text.format.demand("text.format")

    @property
    def thinking(self) -> bool:
        """Returns whether thinking is on. A budget alone switches it on too."""
        budget = self.thought_budget
        wish = thinks(None if self.reasoning is None else self.reasoning.effort)
        return budget != 0 and (budget is not None if wish is None else wish)

    def _nested_budgets(self) -> dict[str, int | None]:
        return {"reasoning": None if self.reasoning is None else self.reasoning.max_tokens}

    @property
    def summary(self) -> str | None:
        """Returns the requested kind of summary of the thoughts, or None."""
        reasoning = self.reasoning
        return None if reasoning is None else reasoning.summary or reasoning.generate_summary

    @property
    def shown_tools(self) -> list[FunctionTool | NamespaceTool]:
        """Returns the tools that are shown to the model."""
        return [tool for tool in self.tools or () if not isinstance(tool, OtherTool)]


class InputTokensRequest(ResponseRequest):
    """Asks how many tokens a response's prompt has. Any body that asks for a response may be sent.

    Nothing is required: instructions or an earlier response are a prompt, too.
    """

    hints: ClassVar[frozenset[str]] = ResponseRequest.hints | {"personality"}

    stream: Literal[False] | None = None
    input: Input | None = None  # type: ignore[assignment]  # nothing reads it but `items`

    @property
    def items(self) -> list[InputItem | ItemReference]:
        return [] if self.input is None else super().items
