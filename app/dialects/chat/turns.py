"""A chat's messages and tools as a conversation, and the prompt that is made of them."""

from collections.abc import Sequence

from app.dialects.chat.schema import ChatFields, ChatMessage, ImageUrlPart
from app.prompting.conversation import (
    Content,
    Conversation,
    ImagePart,
    ImageUrl,
    Part,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    UnreadablePart,
    check_results,
)
from app.prompting.images import Picture
from app.prompting.prompt import Prompt, PromptBuilder


def chat_prompt(
    prompts: PromptBuilder,
    body: ChatFields,
    turns: Conversation,
    pictures: Sequence[Picture],
    context_length: int | None = None,
) -> Prompt:
    """Returns the prompt of a chat, whose messages are `turns`.

    Raises BadRequest if none can be made of it.
    """
    return prompts.chat(
        turns,
        offered_tools(body),
        pictures=pictures,
        context_length=context_length,
        thinking=body.thinks,
        continues=body.continues,
        options=body.template_options,
    )


def conversation(messages: Sequence[ChatMessage]) -> list[Turn | ToolResult]:
    """Returns the messages as turns. Raises BadRequest if a result belongs to no call before it."""
    turns = [_turn(message, f"messages.{index}") for index, message in enumerate(messages)]
    check_results(turns)
    return turns


def offered_tools(body: ChatFields) -> list[Tool]:
    return [tool.function.tool(f"tools.{index}.function") for index, tool in body.offered]


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
    parts: list[Part] = []
    for index, part in enumerate(message.content):
        if isinstance(part, ImageUrlPart):
            url = part.image_url.url
            parts.append(ImagePart(ImageUrl(url), f"{field}.{index}.image_url.url"))
        elif isinstance(part.text, str):
            parts.append(TextPart(part.text))
        else:
            parts.append(UnreadablePart(part.type, f"{field}.{index}"))
    return tuple(parts)
