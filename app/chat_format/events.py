"""The neutral events of an answer: text, thoughts and tool calls, whichever format they came in.

Events are append-only. A dialect turns them into its own JSON.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce


@dataclass(frozen=True)
class TextDelta:
    """The next characters of the answer."""

    text: str


@dataclass(frozen=True)
class ThinkingDelta:
    """The next characters of the thoughts. Several thoughts are joined."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """The beginning of a call, which has its name, or the next characters of its JSON arguments."""

    index: int  # the call's number in this answer, from 0
    name: str | None
    arguments: str


@dataclass(frozen=True)
class ToolCallEnd:
    """A call is over. This event alone says whether it is complete.

    `arguments` is the whole text that the deltas carried. It is JSON if and only if the call is
    complete; otherwise the call was cut off or is not in the model's format.
    """

    index: int
    name: str
    arguments: str
    complete: bool


Event = TextDelta | ThinkingDelta | ToolCallDelta | ToolCallEnd


def merged(events: Iterable[Event]) -> list[Event]:
    """Returns the events with neighbours of one kind joined into one."""

    def join(before: list[Event], event: Event) -> list[Event]:
        match before, event:
            case [*others, TextDelta(text=text)], TextDelta(text=more):
                return [*others, TextDelta(text + more)]
            case [*others, ThinkingDelta(text=text)], ThinkingDelta(text=more):
                return [*others, ThinkingDelta(text + more)]
            case [*others, ToolCallDelta() as call], ToolCallDelta(name=None, arguments=more):
                return [*others, replace(call, arguments=call.arguments + more)]
        return [*before, event]

    return reduce(join, events, [])
