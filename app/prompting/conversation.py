"""A conversation: its turns and their parts, in types that all dialects share.

The dialects make these types from their JSON. Only `prompt.py` turns them into the arguments of a
chat template. All of them are immutable.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.errors import BadRequest, short

Role = Literal["system", "developer", "user", "assistant"]

# Limits of free JSON, such as a tool's parameters. Chat templates can render JSON far beyond them.
MAX_JSON_LEVELS = 64
MAX_JSON_VALUES = 100_000


@dataclass(frozen=True)
class TextPart:
    """A text in a turn."""

    text: str


@dataclass(frozen=True)
class ImageUrl:
    """An image by its address: a data URL, or a URL to fetch it from."""

    url: str


@dataclass(frozen=True)
class ImageFile:
    """The file of an image in base64, as a client sent it."""

    base64: str


@dataclass(frozen=True)
class ImagePart:
    """An image in a turn. `field` is the request's field that an error about it names."""

    source: ImageUrl | ImageFile
    field: str


@dataclass(frozen=True)
class UnreadablePart:
    """A part of a type that no model reads here, such as "input_audio".

    `field` is the request's field that an error about it names.
    """

    kind: str
    field: str


Part = TextPart | ImagePart | UnreadablePart
Content = str | tuple[Part, ...]


@dataclass(frozen=True)
class ToolCall:
    """A call that the assistant made.

    `arguments` is a mapping, or the client's text if that is not a JSON object. The model is then
    shown the text.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] | str

    @classmethod
    def from_json(cls, id: str, name: str, arguments: str) -> "ToolCall":
        """Parse the arguments. They stay text unless they are a JSON object within the limits."""
        try:
            value = bounded_json(json.loads(arguments or "{}"))
        except (ValueError, RecursionError):
            return cls(id, name, arguments)
        return cls(id, name, value if isinstance(value, dict) else arguments)


@dataclass(frozen=True)
class Turn:
    """A turn of one side. Only the assistant thinks and calls tools."""

    role: Role
    content: Content
    name: str | None = None
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class ToolResult:
    """The result of a call. `field` is the request's field that an error about it names."""

    call_id: str
    content: Content
    field: str
    name: str | None = None


Conversation = Sequence[Turn | ToolResult]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. `field` is the request's field that has its parameters.

    If it is `strict`, the arguments of every call must satisfy `parameters`, a JSON schema.
    """

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool
    field: str


def characters_of(each: Turn | ToolResult) -> int:
    """Returns how many characters the texts of a turn or result have, without its images."""
    content = each.content
    parts = [TextPart(content)] if isinstance(content, str) else content
    characters = sum(len(part.text) for part in parts if isinstance(part, TextPart))
    if isinstance(each, Turn):
        characters += len(each.thought)
        characters += sum(_characters(call.arguments) for call in each.calls)
    return characters


def _characters(value: Any) -> int:
    """Returns how many characters free JSON has, at least."""
    match value:
        case str():
            return len(value)
        case Mapping():
            return sum(len(key) + _characters(each) for key, each in value.items())
        case list():
            return len(value) + sum(map(_characters, value))
    return 1


def check_results(conversation: Conversation) -> None:
    """Raises BadRequest if a result belongs to no call before it. The error names its field."""
    called: set[str] = set()
    for each in conversation:
        match each:
            case Turn(calls=calls):
                called.update(call.id for call in calls)
            case ToolResult(call_id=id, field=field) if id not in called:
                raise BadRequest(
                    f"{field}: no call before it has the id {short(id)!r}.", param=field
                )


def bounded_json(value: Any) -> Any:
    """Returns the value. Raises ValueError if it is too deep, too large, or not finite."""
    level, levels, values = [value], 0, 0
    while level:
        levels, values = levels + 1, values + len(level)
        if levels > MAX_JSON_LEVELS:
            raise ValueError(f"it is nested more than {MAX_JSON_LEVELS} levels deep")
        if values > MAX_JSON_VALUES:
            raise ValueError(f"it has more than {MAX_JSON_VALUES} values")
        if any(isinstance(each, float) and not math.isfinite(each) for each in level):
            raise ValueError("it has a number that is not finite or is too large")
        containers = [each for each in level if isinstance(each, dict | list)]
        level = [
            each
            for container in containers
            for each in (container.values() if isinstance(container, dict) else container)
        ]
    return value
