"""A Messages request as a conversation, and its tools."""

from collections.abc import Iterable, Sequence, Set
from itertools import groupby
from operator import attrgetter
from typing import Any

from app.dialects.anthropic.schema import (
    AnyBlock,
    CountTokensRequest,
    DocumentBlock,
    ImageBlock,
    OtherBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from app.errors import BadRequest, short
from app.prompting.conversation import (
    Content,
    ImageFile,
    ImagePart,
    Part,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    UnreadablePart,
)

_FIELD = "messages"  # the field that errors name; their text says which part of it is wrong
# Claude Code begins its system prompt with this line, which is meant for Anthropic's servers. It is
# left out, because it differs in every request, so that no two prompts would share a prefix.
_ATTRIBUTION = "x-anthropic-billing-header:"


def conversation(body: CountTokensRequest) -> list[Turn | ToolResult]:
    """Returns the messages as turns. Neighbours of one role are one turn. Empty ones are left out.

    Raises BadRequest for a result whose call is not in the assistant's message just before it.
    """
    system = _system(body.system)
    turns: list[Turn | ToolResult] = [Turn("system", system)] if system else []
    calls: set[str] = set()  # the ids of the last turn's calls
    spoken = [message for message in body.messages if message.blocks]
    for role, several in groupby(spoken, key=attrgetter("role")):
        blocks = [block for message in several for block in message.blocks]
        match role:
            case "assistant":
                turn = _assistant_turn(blocks)
                turns.append(turn)
                calls = {call.id for call in turn.calls}
            case "user":
                turns += _user_turns(blocks, calls)
            case "system":
                turns.append(Turn("system", _content(blocks)))
    return turns


def offered_tools(body: CountTokensRequest) -> list[Tool]:
    return [
        Tool(
            tool.name,
            tool.description or "",
            tool.input_schema,
            bool(tool.strict),
            f"tools.{index}.input_schema",
        )
        for index, tool in body.offered
    ]


def _system(system: str | Sequence[TextBlock] | None) -> str:
    texts = [system or ""] if isinstance(system, str | None) else [each.text for each in system]
    meant = [t.partition("\n")[2] if t.startswith(_ATTRIBUTION) else t for t in texts]
    return "\n".join(text for text in meant if text.strip())


def _assistant_turn(blocks: Sequence[AnyBlock]) -> Turn:
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = tuple(
        ToolCall(block.id, block.name, block.input)
        for block in blocks
        if isinstance(block, ToolUseBlock)
    )
    thought = "\n".join(thoughts) if any(thoughts) else ""
    return Turn("assistant", _content(blocks), thought=thought, calls=calls)


def _user_turns(blocks: Sequence[AnyBlock], calls: Set[str]) -> list[Turn | ToolResult]:
    """Returns the results, then a turn with everything else that the user says."""
    results = [block for block in blocks if isinstance(block, ToolResultBlock)]
    for result in results:
        if result.tool_use_id not in calls:
            raise BadRequest(
                f"messages: the tool_use_id {short(result.tool_use_id)!r} of a tool_result belongs "
                "to no tool_use in the assistant's message before it.",
                param=_FIELD,
            )
    turns: list[Turn | ToolResult] = [
        ToolResult(result.tool_use_id, _result(result), _FIELD) for result in results
    ]
    others = [block for block in blocks if not isinstance(block, ToolResultBlock)]
    return [*turns, Turn("user", _content(others))] if others else turns


def _result(result: ToolResultBlock) -> Content:
    shown: list[AnyBlock] = [*result.blocks]
    if result.is_error:
        shown = [TextBlock(type="text", text="The tool failed:"), *shown]
    return _content(shown)


def _content(blocks: Iterable[AnyBlock]) -> Content:
    """Returns the texts and images of the blocks."""
    parts: list[Part] = []
    for block in blocks:
        match block:
            case TextBlock(text=text):
                parts.append(TextPart(text))
            case ImageBlock(source=source):
                parts.append(ImagePart(ImageFile(source.data), _FIELD))
            case DocumentBlock():
                parts.append(TextPart(_document_text(block)))
            case OtherBlock():
                text = block.text if isinstance(block.text, str) else _texts(block.content)
                unreadable = UnreadablePart(block.type, _FIELD)
                parts.append(TextPart(text) if text else unreadable)
    return tuple(parts)


def _document_text(block: DocumentBlock) -> str:
    """Returns the document's title, context and text, or a line that says that it can't be read."""
    source = block.source
    text = _texts(source.get("data") if source.get("type") == "text" else source.get("content"))
    if not text:
        kind = source.get("media_type", "unknown type")
        text = f"[A document of {kind} was here, which you cannot read.]"
    return "\n".join(filter(None, [block.title, block.context, text]))


def _texts(content: Any) -> str:
    """Returns a text, or the texts of a list of blocks, or nothing."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    texts = [each.get("text") for each in blocks if isinstance(each, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
