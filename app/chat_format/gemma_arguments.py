"""The arguments of a Gemma tool call, turned into JSON character by character."""

import json
import re
from typing import Literal

_LITERAL = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
# Deeper nesting breaks the call, because JSON parsers such as Python's have such a limit too.
_MOST_LEVELS = 256


class Arguments:
    """Turns the arguments of one call into JSON text, character by character.

    It accepts plain JSON as well, so a source that breaks this syntax would break JSON at the same
    character. Therefore the source after a break is given out unchanged: it never becomes valid.
    """

    def __init__(self) -> None:
        self._state: Literal[
            "key", "colon", "value", "item", "next", "end",  # between parts: what may follow
            "word", "quoted", "string", "escape",  # "quoted" began with the quote token
            "broken",
        ] = "value"  # fmt: skip
        self._closers: list[str] = []  # the closing brackets still to come, the innermost last
        self._is_key = False  # whether the word or string that is being read is a key
        self._comma = False  # a comma was read that is given out when a part follows it
        self._held = ""  # the word or escape that is being read

    @property
    def complete(self) -> bool:
        """Returns whether the outermost bracket is closed and nothing has followed it."""
        return self._state == "end"

    def read(self, text: str) -> str:
        """Returns the JSON text that this source adds."""
        if self._state == "quoted":
            return _escaped(text)
        return "".join(map(self._read_character, text))

    def read_quote(self) -> str:
        """Read the quote token. It is an ordinary quote where no string can begin or end."""
        if self._state == "quoted":
            return self._end_string()
        if self._state in ("key", "value", "item"):
            return self._begin_string("quoted")
        return self._read_character('"')

    def finish(self) -> str:
        """Returns the text that is still held back when the source ends here."""
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
        if state in ("value", "item") and character in "{[" and len(self._closers) < _MOST_LEVELS:
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
        """Returns the held text and this source. From here on the source is given out unchanged."""
        held, self._held, self._state = self._held, "", "broken"
        return self._due_comma() + held + source


def _escaped(text: str) -> str:
    """Returns the text escaped for the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
