"""The answers of `POST /v1/messages` and `/v1/messages/count_tokens`."""

from typing import Any, Literal

from app.dialects.answer_fields import Diffusion, Sent

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class TokenCount(Sent):
    input_tokens: int


class ThinkingTokens(Sent):
    thinking_tokens: int


class MessageUsage(Sent):
    """The prompt's tokens are the sum of `input_tokens` and `cache_read_input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens


class TextBlockAnswer(Sent):
    type: Literal["text"]
    text: str


class ThinkingBlockAnswer(Sent):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlockAnswer(Sent):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


BlockAnswer = TextBlockAnswer | ThinkingBlockAnswer | ToolUseBlockAnswer


class BegunMessage(Sent):
    """A streamed message before it has any content."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[BlockAnswer]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class Message(BegunMessage):
    stop_reason: StopReason
    diffusion: Diffusion


class MessageStart(Sent):
    type: Literal["message_start"]
    message: BegunMessage


class Ping(Sent):
    """Keeps the connection alive."""

    type: Literal["ping"]


class ContentBlockStart(Sent):
    type: Literal["content_block_start"]
    index: int
    content_block: BlockAnswer


class TextBlockDelta(Sent):
    type: Literal["text_delta"]
    text: str


class ThinkingBlockDelta(Sent):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(Sent):
    type: Literal["signature_delta"]
    signature: str


class InputJsonDelta(Sent):
    type: Literal["input_json_delta"]
    partial_json: str


class ContentBlockDelta(Sent):
    type: Literal["content_block_delta"]
    index: int
    delta: TextBlockDelta | ThinkingBlockDelta | SignatureDelta | InputJsonDelta


class ContentBlockStop(Sent):
    type: Literal["content_block_stop"]
    index: int


class MessageEnd(Sent):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Sent):
    """The end of the message. Its usage replaces that of `message_start`."""

    type: Literal["message_delta"]
    delta: MessageEnd
    usage: MessageUsage
    diffusion: Diffusion


class MessageStop(Sent):
    type: Literal["message_stop"]


MessageEvent = (
    MessageStart
    | Ping
    | ContentBlockStart
    | ContentBlockDelta
    | ContentBlockStop
    | MessageDelta
    | MessageStop
)
