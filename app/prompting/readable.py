"""Puts a line in the place of what a model can't read, such as a picture for one that has no eyes.

An agent's history has whatever its tools returned, and a user can't take it out again. So only what
the user sends now is refused, because the answer would be about something that was never read.
"""

from dataclasses import replace

from app.errors import UNSUPPORTED, BadRequest, short
from app.prompting.conversation import (
    Content,
    Conversation,
    ImagePart,
    Part,
    TextPart,
    ToolResult,
    Turn,
    UnreadablePart,
)


def readable(conversation: Conversation, *, sees: bool) -> list[Turn | ToolResult]:
    """Returns the conversation with a line for each part that the model can't read.

    Nothing stands for such a part of the assistant's. Images stay if the model `sees` them.
    Otherwise only those that the user sends now stay, to be refused. Raises BadRequest, naming the
    field, for another part that the user sends now.
    """
    spoken = [index for index, each in enumerate(conversation) if _role(each) == "assistant"]
    new = max(spoken, default=-1) + 1
    shown: list[Turn | ToolResult] = []
    for index, each in enumerate(conversation):
        content: Content
        if index >= new and _role(each) == "user":
            _check(each.content)
            content = each.content
        else:
            content = _with_lines(each, sees=sees)
        shown.append(each if content is each.content else replace(each, content=content))
    return shown


def _role(each: Turn | ToolResult) -> str:
    return each.role if isinstance(each, Turn) else "tool"


def _check(content: Content) -> None:
    for part in content:
        if isinstance(part, UnreadablePart):
            raise BadRequest(
                f"{part.field}: a part of type {short(part.kind)!r} can't be read; allowed: texts "
                "and images.",
                param=part.field,
                code=UNSUPPORTED,
            )


def _with_lines(each: Turn | ToolResult, *, sees: bool) -> Content:
    content = each.content
    if isinstance(content, str):
        return content
    lines = [(part, _line(part, sees=sees)) for part in content]
    if _role(each) == "assistant":
        return tuple(part for part, line in lines if line is None)
    return tuple(line or part for part, line in lines)


def _line(part: Part, *, sees: bool) -> TextPart | None:
    """Returns the line that stands for the part, or None if the model can read the part."""
    match part:
        case UnreadablePart(kind=kind):
            return TextPart(f"[A part of type {kind!r} was here, which you cannot read.]")
        case ImagePart() if not sees:
            return TextPart("[An image was here, which you cannot see.]")
    return None
