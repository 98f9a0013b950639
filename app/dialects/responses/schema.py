"""The bodies of `POST /v1/responses` and `/v1/responses/input_tokens`.

Tools of other types than `function` are the only thing that is skipped instead of refused. They run
in OpenAI's service or in the client, and clients such as Codex send several with every request. The
response's `tools` shows which tools the model was offered.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from app.dialects.fields import (
    MAX_TOP_LOGPROBS,
    ONE,
    ONE_OR_SEVERAL,
    SEVERAL,
    SamplingFields,
    Strict,
    thinks,
    unsupported,
)
from app.dialects.responses.items import AnyItem, InputItem, ItemReference, MessageItem
from app.dialects.tools import Function, ToolChoice

LOGPROBS = "message.output_text.logprobs"


class FunctionTool(Function):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"],),
        "async": (False,),
        "defer_loading": (False,),
        "output_schema": (),
    }

    type: Literal["function"]


class SkippedTool(BaseModel):
    """A tool of any other type, which is not shown to the model."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str


def _tool_type(value: Any) -> str:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return "(function)" if kind == "function" else "(other)"


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("(function)")] | Annotated[SkippedTool, Tag("(other)")],
    Discriminator(_tool_type),
]


class Reasoning(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"context": ("auto",), "mode": ("standard",)}

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None  # its older name


class TextConfig(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "format": ({"type": "text"},),
        "verbosity": ("medium",),
    }


class ResponseStreamOptions(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}


Input = Annotated[
    Annotated[str, ONE] | Annotated[list[AnyItem], Field(min_length=1, fail_fast=True), SEVERAL],
    ONE_OR_SEVERAL,
]


class ResponseRequest(SamplingFields):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "max_tool_calls": (),
        "moderation": (),
        "prompt": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory",),
        "service_tier": ("auto", "default"),
        "truncation": ("disabled",),
    }

    model: str | None = None
    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    tools: list[AnyTool] | None = Field(default=None, fail_fast=True)
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    # Only the log-probabilities have an effect. The others extend items that never occur here.
    include: (
        list[
            Literal[
                "message.output_text.logprobs",
                "reasoning.encrypted_content",
                "message.input_image.image_url",
                "file_search_call.results",
                "web_search_call.results",
                "web_search_call.action.sources",
                "computer_call_output.output.image_url",
                "code_interpreter_call.outputs",
            ]
        ]
        | None
    ) = Field(default=None, fail_fast=True)
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    # These fields have no effect. Some are returned in the response.
    metadata: dict[str, str] | None = None
    client_metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ResponseRequest":
        if self.top_logprobs and not self.wants_logprobs:
            raise unsupported("top_logprobs", f'it is only allowed if include has "{LOGPROBS}"')
        if self.stream_options is not None and not self.stream:
            raise unsupported("stream_options", "it is only allowed if stream is true")
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
    def thinking(self) -> bool:
        return thinks(None if self.reasoning is None else self.reasoning.effort)

    @property
    def summary(self) -> str | None:
        """Returns the requested kind of summary of the thoughts, or None."""
        reasoning = self.reasoning
        return None if reasoning is None else reasoning.summary or reasoning.generate_summary

    @property
    def functions(self) -> list[FunctionTool]:
        """Returns the tools that are not skipped."""
        return [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]


class InputTokensRequest(ResponseRequest):
    """Asks how many tokens a response's prompt has. Any body that asks for a response may be sent.

    Nothing is required: instructions or an earlier response are a prompt, too.
    """

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **ResponseRequest.neutral,
        "personality": (),
        "stream": (False,),
    }

    input: Input | None = None  # type: ignore[assignment]  # nothing reads it but `items`

    @property
    def items(self) -> list[InputItem | ItemReference]:
        return [] if self.input is None else super().items
