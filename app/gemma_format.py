"""Gemma 4's answers: thinking channels and tool calls, taken apart piece by piece.

The only file that knows the markers (https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4):
`<|channel>thought\\n…<channel|>` around a thought, and around a call
`<|tool_call>call:name{key:<|"|>text<|"|>,n:1.5,list:[true,null],obj:{…}}<tool_call|>`.
Knows no tokens and no HTTP. A marker counts only as a `Control`: typed as text it is text.

What comes out is append-only and the same however the text is cut into pieces. No text is lost,
but for a call's name that the answer's end cuts, and no marker given out. A call's arguments parse
as JSON if and only if the call is complete: what breaks Gemma's syntax follows in the model's own
characters, no value is made up for it.
"""

import json
import re
from dataclasses import dataclass
from typing import Literal

MODEL_TURN = "<|turn>model\n"  # where a rendered prompt leaves the model to begin
EMPTY_THOUGHT = "<|channel>thought\n<channel|>"  # which tells it not to think

# What may stand before the name, models leave out in part.
_HEAD = re.compile(r"\s*(?:(?:call)?\s*:\s*)?([\w.-]+(?::[\w.-]+)*)\s*")
_HEAD_BEGUN = re.compile(r"\s*(?:call)?\s*:?\s*[\w.:-]*\s*")
# A first line with more than a name is a thought that has no header.
_CHANNEL_NAME = re.compile(r"[\w-]*[ \t]*")
_LITERAL = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")


@dataclass(frozen=True)
class Control:
    """A control token of the answer, apart from text that only looks like one."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    """The next characters of the answer."""

    text: str


@dataclass(frozen=True)
class ThinkingDelta:
    """The next characters of a thought; several thoughts follow on each other."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A call begins (`name` given, no arguments yet) or its arguments' JSON text goes on."""

    index: int  # of the call in this answer, from 0
    name: str | None
    arguments: str


@dataclass(frozen=True)
class Call:
    """A finished call. Not complete: cut off, or no Gemma syntax; its arguments are no JSON."""

    name: str
    arguments: str
    complete: bool


Piece = str | Control
Event = TextDelta | ThinkingDelta | ToolCallDelta
Channel = Literal["text", "thinking"]


def ends_in_thought(prompt: str) -> bool:
    """Whether a rendered prompt leaves a thought open, for the answer to go on with."""
    return prompt.rfind("<|channel>") > prompt.rfind("<channel|>")


class AnswerParser:
    """One answer. `calls` are the finished ones; nothing counts once it has `ended`."""

    def __init__(self, *, thinking: bool = False, calls: bool = True) -> None:
        """`thinking`: the prompt ends inside a thought, the channel's header included.

        `calls` false: no tools were offered, so what stands between call markers is text.
        """
        self.calls: list[Call] = []
        self.ended = False
        self._reads_calls = calls
        self._channel: Channel = "thinking" if thinking else "text"
        # The channel's first line as long as that may be format: the header of a thought, or
        # the one newline that may stand between a thought and what follows.
        self._first_line: str | None = None
        self._call: _OpenCall | None = None

    @property
    def place(self) -> Literal["text", "thinking", "call"]:
        """What the next piece belongs to."""
        return "call" if self._call else self._channel

    def feed(self, piece: Piece) -> list[Event]:
        """What this piece adds for certain."""
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
        """What was held back when no more tokens came; a call that is still open is over.

        One of which only the name has begun is none, and no text either.
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
        head, brace, rest = (self._call.head + text).partition("{")
        if not brace:
            self._call.head = head
            return []
        name = _HEAD.fullmatch(head)
        if name is None:
            self._call = None
            return self._say(head + brace + rest)
        self._call.name, self._call.arguments = name[1], _Arguments()
        begun = ToolCallDelta(len(self.calls), name[1], "")
        return [begun, *self._argue(self._call.arguments.read(brace + rest))]

    def _read_quote(self) -> list[Event]:
        if self._call is None or self._call.arguments is None:
            return self._read('"')
        return self._argue(self._call.arguments.read_quote())

    def _close_call(self) -> list[Event]:
        """A call with its end marker; a mere name calls without arguments."""
        call = self._call
        if call and call.arguments is None and _HEAD.fullmatch(call.head):
            return self._read("{}") + self._end_call()
        return self._end_call()

    def _end_call(self) -> list[Event]:
        """Leave a call, if one is open, with what its source has been so far."""
        call = self._call
        if call is None:
            return []
        if call.arguments is None:
            self._call = None
            return self._say(call.head)
        events = self._argue(call.arguments.rest())
        self.calls.append(Call(call.name, call.text, call.arguments.complete))
        self._call = None
        return events

    def _argue(self, arguments: str) -> list[Event]:
        assert self._call is not None
        self._call.text += arguments
        return [ToolCallDelta(len(self.calls), None, arguments)] if arguments else []

    def _enter(self, channel: Channel) -> list[Event]:
        self._channel, self._first_line = channel, ""
        return []

    def _without_first_line(self, text: str) -> str:
        if self._first_line is None:
            return text
        text = self._first_line + text
        line, newline, rest = text.partition("\n")
        is_format = not line or (
            self._channel == "thinking" and _CHANNEL_NAME.fullmatch(line) is not None
        )
        self._first_line = line if is_format and not newline else None
        return rest if is_format else text

    def _say(self, text: str) -> list[Event]:
        if not text:
            return []
        return [ThinkingDelta(text) if self._channel == "thinking" else TextDelta(text)]


@dataclass
class _OpenCall:
    head: str = ""  # what stands before the arguments, until they begin
    name: str = ""
    arguments: "_Arguments | None" = None
    text: str = ""  # the JSON given out so far


class _Arguments:
    """Gemma's arguments to JSON, character by character.

    All of JSON is accepted as well, so what breaks this syntax would break JSON in the same
    place. Hence the rest after a break can be given out as it stands and is never valid.
    """

    def __init__(self) -> None:
        self._state: Literal[
            "key", "colon", "value", "item", "next", "end",  # between parts: what may follow
            "word", "quoted", "string", "escape",  # in a part; quoted: by the quote token
            "broken",
        ] = "value"  # fmt: skip
        self._closers: list[str] = []  # the brackets that are due, innermost last
        self._is_key = False  # of the word or string that is being read
        self._comma = False  # seen, and not given out before something follows it
        self._held = ""  # the word or escape that is being read

    @property
    def complete(self) -> bool:
        """The outermost bracket is closed and nothing else follows."""
        return self._state == "end"

    def read(self, text: str) -> str:
        """The JSON that this source adds."""
        if self._state == "quoted":
            return _escaped(text)
        return "".join(map(self._read_character, text))

    def read_quote(self) -> str:
        """The quote token. Where it is no border of a string it is a quote like another."""
        if self._state == "quoted":
            return self._end_string()
        if self._state in ("key", "value", "item"):
            return self._begin_string("quoted")
        return self._read_character('"')

    def rest(self) -> str:
        """What is held back when the source ends here."""
        return "" if self.complete else self._break("")

    def _read_character(self, character: str) -> str:
        match self._state:
            case "broken":
                return character
            case "string":
                if character == '"':
                    return self._end_string()
                if character != "\\":
                    return _escaped(character)
                self._state, self._held = "escape", character
                return ""
            case "escape":
                return self._read_escape(character)
            case "word":
                return self._read_word(character)
            case _ if character.isspace():
                return ""
            case _:
                return self._read_between(character)

    def _read_between(self, character: str) -> str:
        state = self._state
        closes = character in self._closers[-1:] and state in ("key", "item", "next")
        if closes:
            self._closers.pop()
            self._comma = False
            self._state = "next" if self._closers else "end"
            return character
        if state == "next" and character == ",":
            self._comma = True
            self._state = "key" if self._closers[-1] == "}" else "item"
            return ""
        if state == "colon" and character == ":":
            self._state = "value"
            return character
        if state in ("value", "item") and character in "{[":
            self._closers.append("}" if character == "{" else "]")
            self._state = "key" if character == "{" else "item"
            return self._due_comma() + character
        if state in ("key", "value", "item"):
            if character == '"':
                return self._begin_string("string")
            if character not in ",:{}[]":
                self._is_key, self._held, self._state = state == "key", character, "word"
                return ""
        return self._break(character)

    def _read_word(self, character: str) -> str:
        if character in (":" if self._is_key else ",}]"):
            word, self._held = self._held.rstrip(), ""
            self._after_part()
            literal = not self._is_key and _LITERAL.fullmatch(word)
            part = word if literal else f'"{_escaped(word)}"'
            return self._due_comma() + part + self._read_between(character)
        if character in '{[",}]':
            return self._break(character)
        self._held += character
        return ""

    def _read_escape(self, character: str) -> str:
        self._held += character
        if _ESCAPE.fullmatch(self._held):
            escape, self._held, self._state = self._held, "", "string"
            return escape
        return "" if _ESCAPE_BEGUN.fullmatch(self._held) else self._break("")

    def _begin_string(self, state: Literal["quoted", "string"]) -> str:
        self._is_key, self._state = self._state == "key", state
        return self._due_comma() + '"'

    def _end_string(self) -> str:
        self._after_part()
        return '"'

    def _after_part(self) -> None:
        self._state = "colon" if self._is_key else "next"

    def _due_comma(self) -> str:
        comma, self._comma = "," if self._comma else "", False
        return comma

    def _break(self, source: str) -> str:
        """From here on the source is given out as it stands."""
        held, self._held, self._state = self._held, "", "broken"
        return self._due_comma() + held + source


def _escaped(text: str) -> str:
    """As it stands inside the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
