"""The two ways in which an answer writes a value: JSON, and Gemma's syntax of calls.

JSON may have white space where people and models put it: behind an opening bracket, a colon and a
comma, and in front of a closing bracket there may be one space, or a line break with indentation.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from app.chat_format.gemma import QUOTE
from app.constraint.characters import ANY_CHARACTER, in_json, utf8
from app.constraint.classes import FIRST_CONTROL
from app.constraint.expressions import (
    EMPTY,
    Expression,
    Ranges,
    any_of,
    repeated,
    sequence,
    symbols,
    word,
)
from app.constraint.limits import ConstraintError

SPACE = any_of(
    [EMPTY, word(b" "), sequence(word(b"\n"), repeated(symbols([(9, 9), (32, 32)]), 0, None))]
)
_BARE_KEY = re.compile(r"[A-Za-z_$][\w.$-]*", re.ASCII)
_FIRST = [(ord("A"), ord("Z")), (ord("a"), ord("z")), (ord("_"), ord("_")), (ord("$"), ord("$"))]
_LATER = [*_FIRST, (ord("0"), ord("9")), (ord("."), ord(".")), (ord("-"), ord("-"))]
_ANY_BARE_KEY = sequence(symbols(_FIRST), repeated(symbols(_LATER), 0, None))


class Text(Protocol):
    """Writes values. The brackets and the comma come with the white space that may be there."""

    open_object: Expression
    close_object: Expression
    open_array: Expression
    close_array: Expression
    comma: Expression

    def character(self, ranges: Ranges) -> Expression:
        """Returns one character of a string."""
        ...

    def string(self, content: Expression) -> Expression:
        """Returns a string with this content."""
        ...

    def key(self, name: str) -> Expression:
        """Returns the name of a member, and what stands between it and its value."""
        ...

    def any_key(self, content: Expression | None = None) -> Expression:
        """Returns a name of a member with this content, or any, and what stands behind it."""
        ...


class JsonText:
    """JSON."""

    open_object = sequence(word(b"{"), SPACE)
    close_object = sequence(SPACE, word(b"}"))
    open_array = sequence(word(b"["), SPACE)
    close_array = sequence(SPACE, word(b"]"))
    comma = sequence(word(b","), SPACE)
    _quote = word(b'"')
    _colon = sequence(word(b":"), SPACE)

    def character(self, ranges: Ranges) -> Expression:
        return in_json(ranges)

    def string(self, content: Expression) -> Expression:
        return sequence(self._quote, content, self._quote)

    def key(self, name: str) -> Expression:
        return sequence(word(_json(name)), self._colon)

    def any_key(self, content: Expression | None = None) -> Expression:
        content = any_string(self) if content is None else content
        return sequence(self.string(content), self._colon)


class CallText:
    """Gemma's syntax of a call's arguments. Strings are between control tokens, unescaped."""

    open_object, close_object = word(b"{"), word(b"}")
    open_array, close_array = word(b"["), word(b"]")
    comma = word(b",")
    _colon = word(b":")

    def __init__(self, controls: Mapping[str, int]) -> None:
        self._quote = control(QUOTE, controls)

    def character(self, ranges: Ranges) -> Expression:
        return utf8(ranges)

    def string(self, content: Expression) -> Expression:
        return sequence(self._quote, content, self._quote)

    def key(self, name: str) -> Expression:
        bare = word(name.encode("utf-8", "replace"))
        return sequence(bare if _BARE_KEY.fullmatch(name) else self.string(bare), self._colon)

    def any_key(self, content: Expression | None = None) -> Expression:
        if content is None:
            name = any_of([_ANY_BARE_KEY, self.string(any_string(self))])
        else:
            name = self.string(content)
        return sequence(name, self._colon)


def literal(value: Any, text: Text) -> Expression:
    """Returns one JSON value, and nothing else."""
    match value:
        case str() if isinstance(text, JsonText):
            return word(_json(value))
        case str():
            return text.string(word(value.encode("utf-8", "replace")))
        case dict():
            return _between(
                text.open_object,
                [sequence(text.key(name), literal(each, text)) for name, each in value.items()],
                text.close_object,
                text,
            )
        case list():
            items = [literal(each, text) for each in value]
            return _between(text.open_array, items, text.close_array, text)
        case _:
            return word(_json(value))


def control(name: str, controls: Mapping[str, int]) -> Expression:
    """Returns a control token, which is no text. Raises ConstraintError if there is none."""
    if name not in controls:
        raise ConstraintError(f"the model's vocabulary lacks the control token {name!r}")
    symbol = FIRST_CONTROL + controls[name]
    return symbols([(symbol, symbol)])


def any_string(text: Text) -> Expression:
    """Returns any string's content."""
    return repeated(text.character(ANY_CHARACTER), 0, None)


def _between(
    opening: Expression, parts: list[Expression], closing: Expression, text: Text
) -> Expression:
    separated = [each for part in parts for each in (text.comma, part)][1:]
    return sequence(opening, *separated, closing)


def _json(value: Any) -> bytes:
    # A surrogate without its other half is no character, but JSON can hold it as an escape.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
