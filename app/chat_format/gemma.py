"""The format of Gemma 4's answers: thinking channels and tool calls, parsed piece by piece.

This is the only file that knows the markers
(https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4). A thought is written as
`<|channel>thought\\n…<channel|>`, a call as
`<|tool_call>call:name{key:<|"|>text<|"|>,n:1.5,list:[true,null],obj:{…}}<tool_call|>`.
The file knows no token ids and no HTTP. A marker counts only if it is a `Control`. A marker that
was typed is text.

The events are append-only and the same however the text is cut into pieces. No text is lost, except
a call's name that the end of the answer cuts off. Markers are never given out. Nothing is invented:
where a call breaks Gemma's syntax, its remaining text is given out as the model wrote it, and the
call does not count as complete.
"""

import re
from dataclasses import dataclass
from typing import Literal

from app.chat_format.events import Event, TextDelta, ThinkingDelta, ToolCallDelta, ToolCallEnd
from app.chat_format.gemma_arguments import Arguments

IMAGE = "<|image|>"  # stands for an image in a rendered prompt

# Models leave out parts of what the format has before the name.
_HEAD = re.compile(r"\s*(?:(?:call)?\s*:\s*)?([\w.-]+(?::[\w.-]+)*)\s*")
_HEAD_BEGUN = re.compile(r"\s*(?:call)?\s*:?\s*[\w.:-]*\s*")
# If the first line holds more than a name, the thought has no header.
_CHANNEL_NAME = re.compile(r"[\w-]*[ \t]*")


@dataclass(frozen=True)
class Control:
    """A control token of the answer, as opposed to text that only looks like one."""

    text: str


Piece = str | Control
Channel = Literal["text", "thinking"]


def without_thoughts(text: str) -> str:
    """Returns the text of an old answer without the thoughts in it, as Gemma is shown it."""
    head, closing, tail = text.partition("<channel|>")
    if closing and "<|channel>" not in head and head.startswith("thought\n"):
        text = tail  # a thought that the prompt had opened
    return "".join(part.split("<|channel>")[0] for part in text.split("<channel|>"))


def with_text_before_call(prompt: str, mark: str, text: str) -> str:
    """Returns a rendered prompt with a text in front of the call whose name has the mark first.

    The mark is removed, also from the name of the call's result.
    """
    head, _, tail = prompt.partition(mark)
    before, call, name = head.rpartition("<|tool_call>")
    return before + text + call + name + tail.replace(mark, "")


def ends_in_thought(prompt: str) -> bool:
    """Returns whether a rendered prompt ends inside a thought, which the answer then continues."""
    return prompt.rfind("<|channel>") > prompt.rfind("<channel|>")


class AnswerParser:
    """Parses one answer. Once it has `ended`, everything that follows is ignored."""

    def __init__(self, *, thinking: bool = False, calls: bool = True) -> None:
        """Set `thinking` if the prompt ends inside a thought, behind the channel's header.

        Unset `calls` if no tools were offered: text between call markers is then plain text.
        """
        self.ended = False
        self._reads_calls = calls
        self._ended_calls = 0
        self._channel: Channel = "thinking" if thinking else "text"
        # The channel's first line, for as long as it may be format rather than content: the header
        # of a thought, or the one line break between a thought and what follows it.
        self._first_line: str | None = None
        self._call: _OpenCall | None = None

    @property
    def section(self) -> Literal["text", "thinking", "call"]:
        """Returns the section that the next piece belongs to."""
        return "call" if self._call else self._channel

    def feed(self, piece: Piece) -> list[Event]:
        """Returns the events that are certain after this piece."""
        if self.ended:
            return []
        if isinstance(piece, str):
            return self._read(piece)
        match piece.text:
            case '<|"|>':
                return self._read_quote()
            case "<|tool_call>" if self._reads_calls:
                events = self._end_call()
                self._first_line = None
                self._call = _OpenCall()
                return events
            case "<tool_call|>":
                return self._close_call()
            case "<|channel>":
                return self._end_call() + self._enter("thinking")
            case "<channel|>" if self._channel == "thinking":
                return self._end_call() + self._enter("text")
            case "<|tool_response>" | "<turn|>":
                return self._end()
            case _:
                return []

    def finish(self) -> list[Event]:
        """Returns the events that were held back. A call that is open ends here.

        If only the name of a call had begun, it is dropped: it is neither a call nor text.
        """
        call = self._call
        if call and call.arguments is None and _HEAD_BEGUN.fullmatch(call.head):
            self._call = None
        return self._end()

    def _end(self) -> list[Event]:
        events = self._end_call()
        self.ended = True
        return events

    def _read(self, text: str) -> list[Event]:
        if self._call is None:
            return self._say(self._without_first_line(text))
        if self._call.arguments is not None:
            return self._argue(self._call.arguments.read(text))
        head, brace, arguments = (self._call.head + text).partition("{")
        if not brace:
            self._call.head = head
            return []
        name = _HEAD.fullmatch(head)
        if name is None:
            self._call = None
            return self._say(head + brace + arguments)
        self._call.name, self._call.arguments = name[1], Arguments()
        begun = ToolCallDelta(self._ended_calls, name[1], "")
        return [begun, *self._argue(self._call.arguments.read(brace + arguments))]

    def _read_quote(self) -> list[Event]:
        if self._call is None or self._call.arguments is None:
            return self._read('"')
        return self._argue(self._call.arguments.read_quote())

    def _close_call(self) -> list[Event]:
        """End a call at its end marker. A name alone is a call without arguments."""
        call = self._call
        if call and call.arguments is None and _HEAD.fullmatch(call.head):
            return self._read("{}") + self._end_call()
        return self._end_call()

    def _end_call(self) -> list[Event]:
        """End the open call, if there is one, with the source that it has so far."""
        call = self._call
        if call is None:
            return []
        if call.arguments is None:
            self._call = None
            return self._say(call.head)
        events = self._argue(call.arguments.finish())
        end = ToolCallEnd(self._ended_calls, call.name, call.text, call.arguments.complete)
        self._ended_calls += 1
        self._call = None
        return [*events, end]

    def _argue(self, arguments: str) -> list[Event]:
        assert self._call is not None
        self._call.text += arguments
        return [ToolCallDelta(self._ended_calls, None, arguments)] if arguments else []

    def _enter(self, channel: Channel) -> list[Event]:
        self._channel, self._first_line = channel, ""
        return []

    def _without_first_line(self, text: str) -> str:
        if self._first_line is None:
            return text
        text = self._first_line + text
        line, newline, tail = text.partition("\n")
        is_format = not line or (
            self._channel == "thinking" and _CHANNEL_NAME.fullmatch(line) is not None
        )
        self._first_line = line if is_format and not newline else None
        return tail if is_format else text

    def _say(self, text: str) -> list[Event]:
        if not text:
            return []
        return [ThinkingDelta(text) if self._channel == "thinking" else TextDelta(text)]


@dataclass
class _OpenCall:
    head: str = ""  # the text before the arguments, until they begin
    name: str = ""
    arguments: Arguments | None = None
    text: str = ""  # the JSON given out so far
