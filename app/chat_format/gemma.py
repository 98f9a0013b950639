"""The format of Gemma 4's answers: thinking channels and tool calls, parsed piece by piece.

This is the only file that knows the markers
(https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4). A thought is written as
`<|channel>thought\\n…<channel|>`, a call as
`<|tool_call>call:name{key:<|"|>text<|"|>,n:1.5,list:[true,null],obj:{…}}<tool_call|>`.
The file knows no token ids and no HTTP. A marker counts only if it is a `Control`. A marker that
was typed is text.

Models do not always write this form. The parser also reads

- several calls in one pair of markers, `call:f{…}call:g{…}`, with or without commas and white space
  between them, and the forms of arguments that `gemma_arguments` lists;
- a thought without its opener: the answer begins with `thought\\n`, and `<channel|>` is the first
  marker behind that. Nothing of such an answer is given out until a marker or the end decides
  whether it is a thought, because it may be text;
- channels of other names. The channels `final`, `answer` and `response` have the answer's text. A
  channel of any other name is a thought, so that no thought passes for an answer;
- a thought that is never closed. If the model ends its answer in it, and has said nothing and
  called nothing outside of thoughts, the end gives out the text of this thought once more, as the
  answer's text: many clients would otherwise show an empty answer. If the answer was cut off, the
  thought is only a thought.

The events are append-only and the same however the text is cut into pieces. No text is lost, except
a call's name that the end of the answer cuts off. Markers are never given out. Nothing is invented:
where a call breaks the syntax, its remaining text is given out as the model wrote it, and the call
does not count as complete.
"""

import re
from dataclasses import dataclass
from typing import Literal

from app.chat_format.events import Event, TextDelta, ThinkingDelta, ToolCallDelta, ToolCallEnd
from app.chat_format.gemma_arguments import Arguments

IMAGE = "<|image|>"  # stands for an image in a rendered prompt

QUOTE = '<|"|>'  # stands around the strings in calls
CALL, CALL_END = "<|tool_call>", "<tool_call|>"  # stand around a call
CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"  # stand around a thought
THOUGHT_HEADER = "thought\n"  # follows the opening marker of a thought

# The control tokens that end an answer: the end of the turn, and the hand-over to a tool.
ANSWER_ENDS = ("<turn|>", "<|tool_response>")

# Models leave out parts of what the format has before the name.
_HEAD = re.compile(r"\s*(?:(?:call)?\s*:\s*)?([\w.-]+(?::[\w.-]+)*)\s*")
_HEAD_BEGUN = re.compile(r"\s*(?:call)?\s*:?\s*[\w.:-]*\s*")
_ARGUMENTS = re.compile(r"[{(]")
# A further call between the same markers needs its "call:", else any word would begin one.
_NEXT_CALL = re.compile(r"[\s,]*(?=call\s*:)")
_NEXT_CALL_BEGUN = re.compile(r"[\s,]*(?:c|ca|cal|call\s*)?")
_SEPARATORS = re.compile(r"[\s,]*")
# If the first line holds more than a name, the thought has no header.
_CHANNEL_NAME = re.compile(r"[\w-]*[ \t]*")
_ANSWER_CHANNELS = ("final", "answer", "response")
_THOUGHT_HEADER = re.compile(r"thought[ \t]*(?:\n|\Z)")
_THOUGHT_HEADER_BEGUN = re.compile(r"t|th|tho|thou|thoug|though|thought[ \t]*(?:\n.*)?", re.DOTALL)


@dataclass(frozen=True)
class Control:
    """A control token of the answer, as opposed to text that only looks like one."""

    text: str


Piece = str | Control
Channel = Literal["text", "thinking"]
# "header": the name of a channel. "undecided": text or a thought without its opener.
Section = Literal["text", "thinking", "call", "header", "undecided"]


def without_thoughts(text: str) -> str:
    """Returns the text of an old answer without the thoughts in it, as Gemma is shown it."""
    head, closing, tail = text.partition("<channel|>")
    if closing and "<|channel>" not in head and _THOUGHT_HEADER.match(head):
        text = tail  # a thought whose opener is in the prompt, or is missing
    spoken = ""
    for part in text.split("<channel|>"):
        outside, *channels = part.split("<|channel>")
        spoken += outside
        for channel in channels:
            name, _, content = channel.partition("\n")
            spoken += content if _names_answer(name) else ""
    return spoken


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
        self._in_channel = thinking  # whether a channel is open
        # The channel's first line, for as long as it may be format rather than content: the name
        # of a channel, or the one line break between a thought and what follows it.
        self._first_line: str | None = None
        # The answer's beginning, for as long as it may be a thought without its opener.
        self._beginning: list[str] | None = None if thinking else []
        self._has_thought_header = False  # then only a marker or the end decides the beginning
        self.undecided_characters = 0  # of the beginning, which are held back
        self._call: _OpenCall | None = None
        self._has_answered = False  # with a text that is not blank, or with a call
        self._open_thought: list[str] = []  # the text of the open channel, if it is a thought

    @property
    def section(self) -> Section:
        """Returns the section that the next piece belongs to."""
        if self._call:
            return "call"
        if self._beginning:
            return "undecided"
        return "header" if self._in_channel and self._first_line is not None else self._channel

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
                return self._end_call() + self._open_channel()
            case "<channel|>":
                return self._close_channel()
            case marker if marker in ANSWER_ENDS:
                return self._end()
            case _:
                return []

    def finish(self, *, cut_off: bool = False) -> list[Event]:
        """Returns the events that were held back. A call that is open ends here.

        If only the name of a call had begun, it is dropped: it is neither a call nor text. Set
        `cut_off` if the model did not end the answer itself.
        """
        call = self._call
        if call and call.arguments is None and _HEAD_BEGUN.fullmatch(call.head):
            self._call = None
        return self._end(cut_off=cut_off)

    def _end(self, *, cut_off: bool = False) -> list[Event]:
        if self.ended:
            return []
        events = self._end_call()
        self.ended = True
        thought = "".join(self._open_thought)
        if thought and not cut_off and not self._has_answered:
            events.append(TextDelta(thought))
        return events

    def _read(self, text: str) -> list[Event]:
        events: list[Event] = []
        while text and self._call is not None:
            more, text = self._read_call(self._call, text)
            events += more
        if text:
            events += self._read_outside_calls(text)
        return events

    def _read_call(self, call: "_OpenCall", text: str) -> tuple[list[Event], str]:
        """Read text into the call. Returns its events, and the text that is not the call's."""
        if call.arguments is None:
            return self._read_head(call, text)
        events = self._argue(call, call.arguments.read(text))
        tail = call.arguments.tail
        following = _NEXT_CALL.match(tail)
        if following:
            call.arguments.tail = ""
            events += self._end_call()
            self._call = _OpenCall()
            return events, tail[following.end() :]
        if not _NEXT_CALL_BEGUN.fullmatch(tail):
            events += self._argue(call, call.arguments.break_off())
        return events, ""

    def _read_head(self, call: "_OpenCall", text: str) -> tuple[list[Event], str]:
        head = call.head + text
        opening = _ARGUMENTS.search(head)
        if opening is None:
            call.head = head
            return [], ""
        name = _HEAD.fullmatch(head, endpos=opening.start())
        if name is None:
            self._call = None
            return [], head
        call.name, call.arguments = name[1], Arguments()
        self._has_answered = True
        return [ToolCallDelta(self._ended_calls, name[1], "")], head[opening.start() :]

    def _read_quote(self) -> list[Event]:
        call = self._call
        if call is None or call.arguments is None or call.arguments.complete:
            return self._read('"')
        return self._argue(call, call.arguments.read_quote())

    def _close_call(self) -> list[Event]:
        """End a call at its end marker. A name alone is a call without arguments."""
        call = self._call
        if call is None:
            return []
        if call.arguments is None:
            return (self._read("{}") if _HEAD.fullmatch(call.head) else []) + self._end_call()
        events = [] if call.arguments.complete else self._argue(call, call.arguments.close())
        return events + self._end_call()

    def _end_call(self) -> list[Event]:
        """End the open call with the source that it has so far.

        Without an open call this decides the answer's beginning: it is text.
        """
        call, self._call = self._call, None
        if call is None:
            return self._decide_beginning()
        if call.arguments is None:
            return self._say(call.head)
        if _SEPARATORS.fullmatch(call.arguments.tail):
            events = self._argue(call, call.arguments.finish())
        else:
            events = self._argue(call, call.arguments.break_off())
        end = ToolCallEnd(self._ended_calls, call.name, call.text, call.arguments.complete)
        self._ended_calls += 1
        return [*events, end]

    def _argue(self, call: "_OpenCall", arguments: str) -> list[Event]:
        call.text += arguments
        return [ToolCallDelta(self._ended_calls, None, arguments)] if arguments else []

    def _open_channel(self) -> list[Event]:
        self._channel, self._in_channel, self._first_line = "thinking", True, ""
        self._open_thought = []
        return []

    def _close_channel(self) -> list[Event]:
        """Close the open channel, or the thought without an opener that the answer began with."""
        events: list[Event] = []
        if self._beginning:
            beginning = "".join(self._beginning)
            header = _THOUGHT_HEADER.match(beginning)
            if header is None:
                return self._decide_beginning()
            self._beginning, self.undecided_characters = None, 0
            self._channel, self._in_channel = "thinking", True
            events = self._say(beginning[header.end() :])
        if not self._in_channel:
            return []
        events += self._end_call()
        self._first_line = "" if self._channel == "thinking" else None
        self._channel, self._in_channel, self._open_thought = "text", False, []
        return events

    def _read_outside_calls(self, text: str) -> list[Event]:
        if self._beginning is None:
            return self._say(self._without_first_line(text))
        self._beginning.append(text)
        self.undecided_characters += len(text)
        if self._has_thought_header:
            return []
        beginning = "".join(self._beginning)
        if _THOUGHT_HEADER_BEGUN.fullmatch(beginning):
            self._has_thought_header = "\n" in beginning
            return []
        return self._decide_beginning()

    def _decide_beginning(self) -> list[Event]:
        """Returns the answer's beginning, which is text, if nothing has decided that before."""
        beginning, self._beginning, self.undecided_characters = self._beginning, None, 0
        return self._say("".join(beginning or ()))

    def _without_first_line(self, text: str) -> str:
        if self._first_line is None:
            return text
        line, newline, tail = (self._first_line + text).partition("\n")
        if line and not (self._in_channel and _CHANNEL_NAME.fullmatch(line)):
            self._first_line = None
            return line + newline + tail
        self._first_line = None if newline else line
        if newline and self._in_channel and _names_answer(line):
            self._channel = "text"
        return tail

    def _say(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._channel == "thinking":
            self._open_thought.append(text)
            return [ThinkingDelta(text)]
        self._has_answered = self._has_answered or not text.isspace()
        return [TextDelta(text)]


@dataclass
class _OpenCall:
    head: str = ""  # the text before the arguments, until they begin
    name: str = ""
    arguments: Arguments | None = None
    text: str = ""  # the JSON given out so far


def _names_answer(channel: str) -> bool:
    """Returns whether a channel of this name has the answer's text."""
    return channel.strip().lower() in _ANSWER_CHANNELS
