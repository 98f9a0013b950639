"""The items of an OpenAI conversation as turns."""

import json
from collections.abc import Sequence
from typing import Any

from app.dialects.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputImage,
    InputItem,
    InputJson,
    InputText,
    MessageItem,
    OtherItem,
    OtherPart,
    OutputText,
    ReasoningItem,
)
from app.prompting import conversation as shared
from app.prompting.conversation import (
    ImagePart,
    ImageUrl,
    TextPart,
    ToolCall,
    ToolResult,
    Turn,
    UnreadablePart,
    check_results,
)


def conversation(earlier: Sequence[InputItem], new: Sequence[InputItem]) -> list[Turn | ToolResult]:
    """Returns the items as turns: those of the kept conversation, then the request's new ones.

    Raises BadRequest if a result belongs to no call.
    """
    turns: list[Turn | ToolResult] = []
    called: set[str] = set()
    for index, item in enumerate([*earlier, *new], start=-len(earlier)):
        field = f"input.{index}" if index >= 0 else "previous_response_id"
        match item:
            case FunctionCallOutputItem():
                content = content_of(item.output, f"{field}.output")
                turns.append(ToolResult(item.call_id, content, f"{field}.call_id", item.name))
            case MessageItem():
                turns.append(Turn(item.role, content_of(item.content, f"{field}.content")))
            case ReasoningItem():
                turns.append(Turn("assistant", "", thought=item.text))
            case FunctionCallItem():
                name = shown_name(item.namespace, item.name)
                call = ToolCall.from_json(item.call_id, name, item.arguments)
                turns.append(Turn("assistant", "", calls=(call,)))
            case OtherItem(call_id=str(id)) if item.type.endswith("_output"):
                if id in called:
                    turns.append(ToolResult(id, _other_text(item.output), f"{field}.call_id"))
            case OtherItem(call_id=str()):
                turns.append(Turn("assistant", "", calls=(_other_call(item),)))
        called |= _called(turns[-1:])
    check_results(turns)
    return turns


def shown_name(namespace: str | None, name: str) -> str:
    """Returns the name by which the model knows a function."""
    return name if namespace is None else f"{namespace}.{name}"


def _called(turns: Sequence[Turn | ToolResult]) -> set[str]:
    return {call.id for turn in turns if isinstance(turn, Turn) for call in turn.calls}


def content_of(content: Any, field: str) -> shared.Content:
    """Returns an item's content: its text, or its parts. `field` is the field that has it."""
    if content is None or isinstance(content, str):
        return content or ""
    parts: list[shared.Part] = []
    for index, part in enumerate(content):
        match part:
            case InputImage(image_url=str(url)):
                parts.append(ImagePart(ImageUrl(url), f"{field}.{index}.image_url"))
            case (
                InputText(text=str(text))
                | InputJson(text=str(text))
                | OutputText(text=str(text))
                | OtherPart(text=str(text))
                | OtherPart(refusal=str(text))
            ):
                parts.append(TextPart(text))
            case _:
                parts.append(UnreadablePart(part.type, f"{field}.{index}"))
    return tuple(parts)


def _other_call(item: OtherItem) -> ToolCall:
    """Returns the call of a tool that is no function, such as OpenAI's shell."""
    assert item.call_id is not None, "items without it are no calls"
    name = item.name or item.type.removesuffix("_call")
    if isinstance(item.arguments, str):
        return ToolCall.from_json(item.call_id, name, item.arguments)
    given = item.arguments or item.action or item.operation
    arguments = given if isinstance(given, dict) else {"input": item.input}
    return ToolCall(item.call_id, name, arguments)


def _other_text(output: Any) -> str:
    """Returns the text of a result: itself, that of its parts, or its JSON."""
    if isinstance(output, str):
        return output
    if isinstance(output, list) and all(isinstance(part, dict) for part in output):
        texts = [part["text"] for part in output if isinstance(part.get("text"), str)]
        if len(texts) == len(output):
            return "\n".join(texts)
    return json.dumps(output, ensure_ascii=False)
