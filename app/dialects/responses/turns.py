"""The items of a Responses conversation as turns, and its tools."""

from collections.abc import Sequence
from dataclasses import replace

from app.dialects.responses.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputImage,
    InputItem,
    MessageItem,
    ReasoningItem,
)
from app.dialects.responses.schema import FunctionTool, ResponseRequest
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


def conversation(earlier: Sequence[InputItem], new: Sequence[InputItem]) -> list[Turn | ToolResult]:
    """Returns the items as turns: those of the kept conversation, then the request's new ones.

    Everything that the assistant thinks, says and calls in a row is one turn. Thoughts that no
    text and no call follows are left out. Raises BadRequest if a result belongs to no call.
    """
    turns: list[Turn | ToolResult] = []
    for index, item in enumerate([*earlier, *new], start=-len(earlier)):
        field = f"input.{index}" if index >= 0 else "previous_response_id"
        match item:
            case FunctionCallOutputItem():
                turns.append(ToolResult(item.call_id, item.text, f"{field}.call_id", item.name))
            case MessageItem(role="assistant"):
                turn = _assistant_turn(turns, item)
                assert isinstance(turn.content, str), "the assistant shows no images"
                turns[-1] = replace(turn, content=turn.content + item.text)
            case MessageItem():
                turns.append(Turn(item.role, _content(item, field)))
            case ReasoningItem():
                turn = _assistant_turn(turns, item)
                turns[-1] = replace(turn, thought=turn.thought + item.text)
            case FunctionCallItem():
                call = ToolCall.from_json(item.call_id, item.name, item.arguments)
                turn = _assistant_turn(turns, item)
                turns[-1] = replace(turn, calls=(*turn.calls, call))
    check_results(turns)
    return [turn for turn in turns if not _is_empty(turn)]


def offered_tools(body: ResponseRequest) -> list[Tool]:
    """Returns the functions among the request's tools, or none if the choice forbids them all."""
    if body.tool_choice == "none":
        return []
    return [
        tool.tool(f"tools.{index}.parameters")
        for index, tool in enumerate(body.tools or [])
        if isinstance(tool, FunctionTool)
    ]


def _content(item: MessageItem, field: str) -> Content:
    if isinstance(item.content, str):
        return item.content
    return tuple(
        ImagePart(ImageUrl(part.image_url), f"{field}.content.{index}.image_url")
        if isinstance(part, InputImage)
        else TextPart(part.text)
        for index, part in enumerate(item.content)
    )


def _assistant_turn(turns: list[Turn | ToolResult], item: InputItem) -> Turn:
    """Returns the assistant's turn that the item belongs to, which is then the last of `turns`.

    A call always continues the assistant's last turn. Other items do so if it has no text yet, or
    if it has calls, because only results may follow calls. Otherwise a new turn is added.
    """
    last = turns[-1] if turns else None
    if isinstance(last, Turn) and last.role == "assistant":
        continues = isinstance(item, FunctionCallItem) or last.calls or not last.content
        if continues:
            return last
    turn = Turn("assistant", "")
    turns.append(turn)
    return turn


def _is_empty(turn: Turn | ToolResult) -> bool:
    if isinstance(turn, ToolResult) or turn.role != "assistant":
        return False
    return not turn.content and not turn.calls
