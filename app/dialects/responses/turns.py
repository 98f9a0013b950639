"""The items of a Responses conversation as turns, and its tools."""

from collections.abc import Sequence

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

    Raises BadRequest if a result belongs to no call.
    """
    turns: list[Turn | ToolResult] = []
    for index, item in enumerate([*earlier, *new], start=-len(earlier)):
        field = f"input.{index}" if index >= 0 else "previous_response_id"
        match item:
            case FunctionCallOutputItem():
                turns.append(ToolResult(item.call_id, item.text, f"{field}.call_id", item.name))
            case MessageItem():
                turns.append(Turn(item.role, _content(item, field)))
            case ReasoningItem():
                turns.append(Turn("assistant", "", thought=item.text))
            case FunctionCallItem():
                call = ToolCall.from_json(item.call_id, item.name, item.arguments)
                turns.append(Turn("assistant", "", calls=(call,)))
    check_results(turns)
    return turns


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
