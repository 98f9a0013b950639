"""The arguments of a Gemma tool call, turned into JSON character by character.

Models do not always write Gemma's own form, `{key:<|"|>text<|"|>,n:1}`. These are read too, in any
mixture:

- plain JSON, and strings and keys in single quotes;
- `key=value`;
- round brackets around the arguments, as in a call in Python: `(key="text", n=1)`;
- `True`, `False` and `None`;
- arguments whose last closing brackets are missing in front of the call's end marker.

Anything else breaks the syntax. No value is ever made up or completed.
"""

import json
import re
from typing import Literal

_LITERAL = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_PYTHON_LITERALS = {"True": "true", "False": "false", "None": "null"}
_ESCAPE = re.compile(r"""\\(?:["'\\/bfnrt]|u[0-9a-fA-F]{4})""")
_ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
# Deeper nesting breaks the call, because JSON parsers such as Python's have such a limit too.
_MOST_LEVELS = 256
# A curly bracket may close a round one too, because the JSON is valid then.
_CLOSERS = {"{": "}", "[": "]", "(": ")}"}


class Arguments:
    """Turns the arguments of one call into JSON text, character by character.

    Every form is turned into JSON one part after another, so a source that breaks the syntax breaks
    JSON at the same character. Therefore the source after a break is given out unchanged: it never
    becomes valid.

    `tail` is the source behind the outermost bracket. It is held back, because another call may
    begin there.
    """

    def __init__(self) -> None:
        self.tail = ""
        self._state: Literal[
            "key", "colon", "value", "item", "next", "end",  # between parts: what may follow
            "word", "quoted", "string", "escape",  # "quoted" began with the quote token
            "broken",
        ] = "value"  # fmt: skip
        # For each open bracket the characters that may close it, the innermost last.
        self._closers: list[str] = []
        self._in_python = False  # whether round brackets surround the arguments
        self._is_key = False  # whether the word or string that is being read is a key
        self._quote = '"'  # the quote that ends the string
        self._assigned = False  # whether "=" stands between the last key and its value
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
        parts = []
        for index, character in enumerate(text):
            if self.complete:
                self.tail += text[index:]
                break
            parts.append(self._read_character(character))
        return "".join(parts)

    def read_quote(self) -> str:
        """Read the quote token. It is an ordinary quote where no string can begin or end."""
        if self._state == "quoted":
            return self._end_string()
        if self._state in ("key", "value", "item"):
            return self._begin_string("quoted")
        return self._read_character('"')

    def close(self) -> str:
        """Returns the JSON text that is due at the call's end marker.

        If nothing but closing brackets is missing, they are added.
        """
        text = ""
        if self._state == "word" and not self._is_key:
            text = self._end_word()
        if self._state not in ("key", "item", "next"):
            return text + self.finish()
        self._state = "end"
        return text + "".join(map(_json_closer, reversed(self._closers)))

    def finish(self) -> str:
        """Returns the text that is still held back when the source ends without an end marker."""
        return "" if self.complete else self._break("")

    def break_off(self) -> str:
        """Returns the tail, which turned out not to be the beginning of another call."""
        tail, self.tail = self.tail, ""
        return self._break(tail)

    def _read_character(self, character: str) -> str:
        match self._state:
            case "broken":
                return character
            case "string":
                if character == self._quote:
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
        closers = self._closers[-1] if self._closers else ""
        if character in closers and state in ("key", "item", "next"):
            self._closers.pop()
            self._comma = False
            self._state = "next" if self._closers else "end"
            return _json_closer(closers)
        if state == "next" and character == ",":
            self._comma = True
            self._state = "item" if closers == "]" else "key"
            return ""
        if state == "colon" and character in ":=":
            self._state, self._assigned = "value", character == "="
            return ":"
        if self._opens(character):
            self._closers.append(_CLOSERS[character])
            self._state = "item" if character == "[" else "key"
            self._in_python = self._in_python or character == "("
            return self._due_comma() + ("[" if character == "[" else "{")
        if state in ("key", "value", "item"):
            if character in "\"'":
                self._quote = character
                return self._begin_string("string")
            if self._begins_word(character):
                self._is_key, self._held, self._state = state == "key", character, "word"
                return ""
        return self._break(character)

    def _opens(self, character: str) -> bool:
        """Returns whether this character opens a bracket here."""
        if self._state not in ("value", "item") or len(self._closers) == _MOST_LEVELS:
            return False
        return character in "{[" or (character == "(" and not self._closers)

    def _begins_word(self, character: str) -> bool:
        if self._state == "key" and character == "=":
            return False
        if self._state == "value" and self._assigned and character in "=>":
            return False  # "==" and "=>" are not known to mean anything
        return character not in (",:{}[]()" if self._in_python else ",:{}[]")

    def _read_word(self, character: str) -> str:
        ends = ":=" if self._is_key else ",}])" if self._in_python else ",}]"
        if character in ends:
            return self._end_word() + self._read_between(character)
        if character in ("{[\"',}]()" if self._in_python else '{[",}]'):
            return self._break(character)
        self._held += character
        return ""

    def _end_word(self) -> str:
        word, self._held = self._held.rstrip(), ""
        self._after_part()
        part = f'"{_escaped(word)}"'
        if not self._is_key:
            word = _PYTHON_LITERALS.get(word, word)
            part = word if _LITERAL.fullmatch(word) else part
        return self._due_comma() + part

    def _read_escape(self, character: str) -> str:
        self._held += character
        if _ESCAPE.fullmatch(self._held):
            escape, self._held, self._state = self._held, "", "string"
            return "'" if escape == r"\'" else escape
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


def _json_closer(closers: str) -> str:
    return "]" if closers == "]" else "}"


def _escaped(text: str) -> str:
    """Returns the text escaped for the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
