"""The answers of `POST /v1/chat/completions`."""

from typing import Literal

from app.dialects.answer_fields import Diffusion, Frame, Sent, SentToken, Usage, optional

FinishReason = Literal["stop", "length", "tool_calls"]


class ChatLogprobs(Sent):
    content: list[SentToken]
    refusal: None


class CalledFunctionAnswer(Sent):
    name: str
    arguments: str


class ToolCallAnswer(Sent):
    id: str
    type: Literal["function"]
    function: CalledFunctionAnswer


class ChatAnswerMessage(Sent):
    """The model's message. Its thoughts are in two fields, because clients read either."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = optional(str)
    reasoning: str = optional(str)
    tool_calls: list[ToolCallAnswer] = optional(list)


class ChatChoice(Sent):
    index: int
    message: ChatAnswerMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None
    token_ids: list[int] = optional(list)


class ChatCompletion(Sent):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    diffusion: Diffusion
    prompt_token_ids: list[int] = optional(list)


class CalledFunctionDelta(Sent):
    name: str = optional(str)
    arguments: str


class ToolCallPart(Sent):
    """A part of a tool call. Only the first part of each call has an id, a type and a name."""

    index: int
    id: str = optional(str)
    type: Literal["function"] = optional(str)
    function: CalledFunctionDelta


class ChatDelta(Sent):
    role: Literal["assistant"] = optional(str)
    content: str = optional(str)
    reasoning_content: str = optional(str)
    reasoning: str = optional(str)
    tool_calls: list[ToolCallPart] = optional(list)


class ChatChunkChoice(Sent):
    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | None
    token_ids: list[int] = optional(list)


class Controlled(Sent):
    """The answer of the control endpoint. `message` says why nothing was done."""

    success: bool
    message: str = optional(str)


class ChatCompletionChunk(Sent):
    """A part of a streamed answer.

    The first part of each choice has the prompt's token ids if the request asks for them, and the
    last has the figures of the answer. Parts with a frame add nothing.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = optional()
    diffusion: Diffusion | Frame = optional()
    prompt_token_ids: list[int] = optional(list)
