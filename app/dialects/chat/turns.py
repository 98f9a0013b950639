"""A chat's messages and tools as a conversation."""

from collections.abc import Sequence

from app.dialects.chat.schema import ChatMessage, ChatTool, ImageUrlPart
from app.prompting.conversation import (
    Content,
    ImagePart,
    ImageUrl,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    check_results,
)


def conversation(messages: Sequence[ChatMessage]) -> list[Turn | ToolResult]:
    """Returns the messages as turns. Raises BadRequest if a result belongs to no call before it."""
    turns = [_turn(message, f"messages.{index}") for index, message in enumerate(messages)]
    check_results(turns)
    return turns


def offered_tools(tools: Sequence[ChatTool]) -> list[Tool]:
    return [
        tool.function.tool(f"tools.{index}.function.parameters") for index, tool in enumerate(tools)
    ]


def _turn(message: ChatMessage, field: str) -> Turn | ToolResult:
    content = _content(message, f"{field}.content")
    if message.role == "tool":
        assert message.tool_call_id is not None, "the schema requires it"
        return ToolResult(message.tool_call_id, content, f"{field}.tool_call_id", message.name)
    calls = tuple(
        ToolCall.from_json(call.id, call.function.name, call.function.arguments)
        for call in message.tool_calls or ()
    )
    thought = message.reasoning_content or message.reasoning or ""
    return Turn(message.role, content, message.name, thought, calls)


def _content(message: ChatMessage, field: str) -> Content:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return tuple(
        ImagePart(ImageUrl(part.image_url.url), f"{field}.{index}.image_url.url")
        if isinstance(part, ImageUrlPart)
        else TextPart(part.text)
        for index, part in enumerate(message.content)
    )
