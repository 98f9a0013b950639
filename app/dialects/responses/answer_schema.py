"""The answers of the endpoints under `/v1/responses`: objects, items and events."""

from typing import Any, Literal

from app.dialects.answer_fields import (
    CachedTokens,
    Diffusion,
    ReasoningTokens,
    Sent,
    SentToken,
    optional,
)

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputTokens(Sent):
    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(Sent):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


# Items of an answer.


class OutputTextPart(Sent):
    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[SentToken]


class SummaryTextPart(Sent):
    type: Literal["summary_text"]
    text: str


class ReasoningTextPart(Sent):
    type: Literal["reasoning_text"]
    text: str


class SentItem(Sent):
    id: str
    status: ItemStatus


class OutputMessage(SentItem):
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[OutputTextPart]


class OutputReasoning(SentItem):
    type: Literal["reasoning"]
    summary: list[SummaryTextPart]
    content: list[ReasoningTextPart]


class OutputFunctionCall(SentItem):
    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str = optional(str)
    arguments: str


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall


# Items that a kept response has read.


class ListedText(Sent):
    type: Literal["input_text"]
    text: str


class ListedImage(Sent):
    type: Literal["input_image"]
    image_url: str = optional(str)
    detail: Literal["auto"]


class ListedAnswer(Sent):
    """A text of an earlier answer. Log-probabilities are listed as the client sent them."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: Any = optional()


class ListedOtherPart(Sent):
    type: str
    text: Any = optional()
    refusal: Any = optional()


ListedPart = ListedText | ListedImage | ListedAnswer | ListedOtherPart


class ListedItem(Sent):
    id: str
    status: str


class ListedMessage(ListedItem):
    type: Literal["message"]
    role: Literal["user", "system", "developer", "assistant"]
    content: list[ListedPart]


class ListedReasoning(ListedItem):
    type: Literal["reasoning"]
    summary: list[SummaryTextPart] = optional(list)
    content: list[ReasoningTextPart] = optional(list)
    encrypted_content: str = optional(str)


class ListedFunctionCall(ListedItem):
    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str = optional(str)
    arguments: str


class ListedFunctionOutput(ListedItem):
    type: Literal["function_call_output"]
    call_id: str
    name: str = optional(str)
    output: str | list[ListedPart] = optional(str)


class ListedOther(ListedItem):
    """An item of another type, such as a call of one of OpenAI's own tools."""

    type: str
    call_id: str = optional(str)
    name: str = optional(str)
    arguments: Any = optional()
    input: Any = optional()
    action: Any = optional()
    operation: Any = optional()
    output: Any = optional()


class InputItemList(Sent):
    object: Literal["list"]
    data: list[
        ListedMessage | ListedReasoning | ListedFunctionCall | ListedFunctionOutput | ListedOther
    ]
    first_id: str | None
    last_id: str | None
    has_more: bool


# The response.


class ResponseError(Sent):
    code: Literal["server_error"]
    message: str


class IncompleteDetails(Sent):
    reason: Literal["max_output_tokens"]


class SentReasoning(Sent):
    effort: str | None
    summary: str | None


class CountedPrompt(CachedTokens):
    cache_write_tokens: int


class ResponseUsage(Sent):
    input_tokens: int
    input_tokens_details: CountedPrompt
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class OfferedTool(Sent):
    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool


class OfferedNamespace(Sent):
    type: Literal["namespace"]
    name: str
    tools: list[OfferedTool]


class Response(Sent):
    """A response. It has usage and `diffusion` when it has ended without an error."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    error: ResponseError | None
    frequency_penalty: float
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, Any]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: SentReasoning
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[OfferedTool | OfferedNamespace]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str | None
    diffusion: Diffusion = optional()


# Events.


class NumberedEvent(Sent):
    sequence_number: int


class LifecycleEvent(NumberedEvent):
    """The whole response. While nothing else happens, `response.in_progress` keeps it alive."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: Response


class WholeItemEvent(NumberedEvent):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class ItemEvent(NumberedEvent):
    item_id: str
    output_index: int


class ContentPartEvent(ItemEvent):
    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int
    part: OutputTextPart | ReasoningTextPart


class SummaryPartEvent(ItemEvent):
    type: Literal["response.reasoning_summary_part.added", "response.reasoning_summary_part.done"]
    summary_index: int
    part: SummaryTextPart


class TextDeltaEvent(ItemEvent):
    type: Literal["response.output_text.delta"]
    content_index: int
    delta: str
    logprobs: list[SentToken]


class TextDoneEvent(ItemEvent):
    type: Literal["response.output_text.done"]
    content_index: int
    text: str
    logprobs: list[SentToken]


class ReasoningDeltaEvent(ItemEvent):
    type: Literal["response.reasoning_text.delta"]
    content_index: int
    delta: str


class ReasoningDoneEvent(ItemEvent):
    type: Literal["response.reasoning_text.done"]
    content_index: int
    text: str


class SummaryDeltaEvent(ItemEvent):
    type: Literal["response.reasoning_summary_text.delta"]
    summary_index: int
    delta: str


class SummaryDoneEvent(ItemEvent):
    type: Literal["response.reasoning_summary_text.done"]
    summary_index: int
    text: str


class ArgumentsDeltaEvent(ItemEvent):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDoneEvent(ItemEvent):
    type: Literal["response.function_call_arguments.done"]
    arguments: str


class SentError(Sent):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEvent(Sent):
    """The last event of a stream that fails. Only a shutdown sends it without a number."""

    type: Literal["error"]
    message: str
    param: str | None
    code: str | None
    error: SentError
    sequence_number: int = optional(int)


ResponseEvent = (
    LifecycleEvent
    | WholeItemEvent
    | ContentPartEvent
    | SummaryPartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ReasoningDeltaEvent
    | ReasoningDoneEvent
    | SummaryDeltaEvent
    | SummaryDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
    | ErrorEvent
)
