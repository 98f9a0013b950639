"""Regular expressions in text form, read into expressions over code points.

The dialect is what ECMA 262 (JSON Schema's `pattern`) and Python's `re` have in common. Where the
two differ, a pattern means what both accept: `\\d`, `\\w` and `\\s` are narrow (ASCII, for white
space also what both count), and their complements are the complements of the wide classes.

Refused by name: look-around, back-references, word boundaries, inline flags, atomic groups and
possessive quantifiers.
"""

import re
import sys
import unicodedata
from functools import lru_cache

from app.constraint.characters import ANY_CHARACTER
from app.constraint.expressions import (
    EMPTY,
    Embedded,
    Expression,
    Range,
    Ranges,
    any_of,
    merged_ranges,
    repeated,
    sequence,
    symbols,
    without,
)
from app.constraint.limits import ConstraintError, Effort, NoWayError
from app.constraint.machines import Machine, intersection, machine

MOST_CHARACTERS = 20_000  # of one pattern
MOST_LEVELS = 100  # of groups in groups

# The anchors are read as symbols that stand around every text.
_BEGIN, _END = 0x110000, 0x110001
_UNIVERSE = (*ANY_CHARACTER, (_BEGIN, _END))

_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_SPACE: Ranges = (
    (0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
    (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip
_WIDE_SPACE = merged_ranges([*_SPACE, (0x1C, 0x1F), (0x85, 0x85), (0xFEFF, 0xFEFF)])
_LETTERS = {"n": 10, "r": 13, "t": 9, "v": 11, "f": 12, "0": 0, "a": 7}
_BOUNDS = re.compile(r"\{(\d+)(,(\d*))?\}")
_NO_LEAST = re.compile(r"\{,\d*\}")
_GROUP = re.compile(r"\(\?(?::|P?<[A-Za-z_]\w*>)")
_PROPERTY = re.compile(r"\{(\^?)(?:(?:General_Category|gc)=)?(\w+)\}")
_CATEGORY_NAMES = {
    "Letter": "L", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Number": "N",
    "Decimal_Number": "Nd", "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Mark": "M",
    "Alphabetic": "L", "Alpha": "L", "Uppercase": "Lu", "Lowercase": "Ll",
}  # fmt: skip


def whole_match(pattern: str, effort: Effort) -> Machine:
    """Returns the texts that a pattern matches from beginning to end.

    Raises ConstraintError if it is not a pattern, and NoWayError if it has what is refused.
    """
    begin, end = symbols([(_BEGIN, _BEGIN)]), symbols([(_END, _END)])
    read = _Reader(pattern).read()
    return _between_anchors(
        sequence(any_of([begin, EMPTY]), read, any_of([end, EMPTY])), effort, begun=False
    )


def search(pattern: str, effort: Effort) -> Machine:
    """Returns the texts in which a pattern matches somewhere. Raises the same errors."""
    anything = repeated(symbols(_UNIVERSE), 0, None)
    return _between_anchors(sequence(anything, _Reader(pattern).read(), anything), effort, True)


def _between_anchors(expression: Expression, effort: Effort, begun: bool) -> Machine:
    """Returns the texts that the expression matches if the symbols of the anchors surround them.

    Unless `begun`, it may match without these symbols too.
    """
    begin, end = symbols([(_BEGIN, _BEGIN)]), symbols([(_END, _END)])
    text = repeated(symbols(ANY_CHARACTER), 0, None)
    around = sequence(begin, text, end)
    if not begun:
        around = sequence(any_of([begin, EMPTY]), text, any_of([end, EMPTY]))
    both = intersection(machine(expression, effort), machine(around, effort), effort)
    return machine(Embedded(both, _no_anchor), effort)


def _no_anchor(ranges: Ranges) -> Expression:
    text = without(ranges, ((_BEGIN, _END),))
    return symbols(text) if text == ranges else any_of([symbols(text), EMPTY])


class _Reader:
    """Reads one pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MOST_CHARACTERS:
            raise NoWayError(
                f"a pattern has {len(pattern)} characters; at most {MOST_CHARACTERS} are allowed"
            )
        self._text = pattern
        self._at = 0
        self._level = 0

    def read(self) -> Expression:
        expression = self._alternatives()
        if self._at < len(self._text):
            raise self._error("a bracket is closed that is not open")
        return expression

    def _alternatives(self) -> Expression:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return any_of(parts)

    def _sequence(self) -> Expression:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._quantified(self._atom()))
        return sequence(*parts)

    def _quantified(self, atom: Expression) -> Expression:
        while True:
            if self._take("*"):
                least, most = 0, None
            elif self._take("+"):
                least, most = 1, None
            elif self._take("?"):
                least, most = 0, 1
            elif _NO_LEAST.match(self._text, self._at):
                # ECMA reads these characters as text, and Python as bounds.
                raise NoWayError(self._message("bounds without a lower bound are not supported"))
            elif bounds := _BOUNDS.match(self._text, self._at):
                self._at = bounds.end()
                least = _number(bounds[1])
                most = least if bounds[2] is None else _number(bounds[3]) if bounds[3] else None
                if most is not None and most < least:
                    raise self._error("the bounds of a repetition are the wrong way round")
            else:
                return atom
            atom = repeated(atom, least, most)
            if self._take("+"):
                raise NoWayError(self._message("possessive quantifiers are not supported"))
            self._take("?")  # lazy: the same texts match
            if self._text[self._at : self._at + 1] in ("*", "+", "?"):
                raise self._error("a quantifier follows a quantifier")

    def _atom(self) -> Expression:
        character = self._text[self._at]
        match character:
            case "(":
                return self._group()
            case "[":
                self._at += 1
                return symbols(self._set())
            case ".":
                self._at += 1
                return symbols(without(ANY_CHARACTER, _LINE_ENDS))
            case "^":
                self._at += 1
                return symbols([(_BEGIN, _BEGIN)])
            case "$":
                self._at += 1
                return symbols([(_END, _END)])
            case "\\":
                if self._text[self._at + 1 : self._at + 2] in ("b", "B"):
                    raise NoWayError(self._message("word boundaries are not supported"))
                if self._text[self._at + 1 : self._at + 2] in ("A", "z", "Z"):
                    self._at += 2
                    begins = self._text[self._at - 1] == "A"
                    return symbols([(_BEGIN, _BEGIN)] if begins else [(_END, _END)])
                return symbols(self._escape(in_set=False))
            case "*" | "+" | "?":
                raise self._error("there is nothing to repeat")
            case _:
                self._at += 1
                return symbols(_point(ord(character)))

    def _group(self) -> Expression:
        if self._text.startswith("(?", self._at):
            if self._text.startswith(("(?=", "(?!", "(?<=", "(?<!"), self._at):
                raise NoWayError(self._message("look-around is not supported"))
            if self._text.startswith("(?>", self._at):
                raise NoWayError(self._message("atomic groups are not supported"))
            if self._text.startswith("(?P=", self._at):
                raise NoWayError(self._message("back-references are not supported"))
            opening = _GROUP.match(self._text, self._at)
            if opening is None:
                raise NoWayError(self._message("flags in a pattern are not supported"))
            self._at = opening.end()
        else:
            self._at += 1
        self._level += 1
        if self._level > MOST_LEVELS:
            raise NoWayError(self._message(f"more than {MOST_LEVELS} groups are nested"))
        inner = self._alternatives()
        self._level -= 1
        if not self._take(")"):
            raise self._error("a bracket is not closed")
        return inner

    def _set(self) -> Ranges:
        negated = self._take("^")
        if self._text.startswith("]", self._at):
            # ECMA has an empty set here, and Python a bracket.
            raise NoWayError(self._message("a set begins with a closing bracket"))
        ranges: list[Range] = []
        wide: list[Range] = []  # what a negated set leaves out
        while not self._take("]"):
            if self._at >= len(self._text):
                raise self._error("a set is not closed")
            low, low_wide = self._member()
            following = self._text[self._at : self._at + 2]
            if len(following) == 2 and following[0] == "-" and following[1] != "]":
                self._at += 1
                high, _ = self._member()
                if len(low) != 1 or len(high) != 1 or low[0][0] > high[0][0]:
                    raise self._error("a range in a set is the wrong way round, or none")
                if low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                    raise self._error("a class stands at the end of a range in a set")
                low = low_wide = ((low[0][0], high[0][0]),)
            ranges += low
            wide += low_wide
        return without(ANY_CHARACTER, wide) if negated else merged_ranges(ranges)

    def _member(self) -> tuple[Ranges, Ranges]:
        """Returns a part of a set: narrow, and as a negated set leaves it out."""
        if self._text[self._at] != "\\":
            self._at += 1
            point = _point(ord(self._text[self._at - 1]))
            return point, point
        letter = self._text[self._at + 1 : self._at + 2]
        narrow = self._escape(in_set=True)
        return narrow, _wide(letter) if letter in "dDwWsS" else narrow

    def _escape(self, *, in_set: bool) -> Ranges:
        letter = self._text[self._at + 1 : self._at + 2]
        self._at += 2
        match letter:
            case "":
                raise self._error("a backslash stands at the end")
            case "d":
                return _DIGITS
            case "w":
                return _WORD
            case "s":
                return _SPACE
            case "D" | "W" | "S":
                return without(ANY_CHARACTER, _wide(letter.lower()))
            case "p" | "P":
                return self._property(letter == "P")
            case "x":
                return self._hex(2)
            case "u":
                return self._unicode()
            case "c":
                control = self._text[self._at : self._at + 1]
                if not (control.isascii() and control.isalpha()):
                    raise self._error("\\c is not followed by a letter")
                self._at += 1
                return _point(ord(control) % 32)
            case "b" if in_set:
                return _point(8)
            case "0" if not self._text[self._at : self._at + 1].isdigit():
                return _point(0)
            case "k":
                raise NoWayError(self._message("back-references are not supported"))
            case _ if letter in _LETTERS and letter != "0":
                return _point(_LETTERS[letter])
            case _ if letter.isdigit():
                raise NoWayError(self._message("back-references are not supported"))
            case _ if letter.isascii() and letter.isalpha():
                raise NoWayError(self._message(f"the escape \\{letter} is not supported"))
            case _:
                return _point(ord(letter))

    def _hex(self, digits: int) -> Ranges:
        text = self._text[self._at : self._at + digits]
        if not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", text):
            raise self._error("an escape lacks hexadecimal digits")
        self._at += digits
        return _point(int(text, 16))

    def _unicode(self) -> Ranges:
        braced = re.compile(r"\{([0-9a-fA-F]{1,6})\}").match(self._text, self._at)
        if braced and int(braced[1], 16) <= sys.maxunicode:
            self._at = braced.end()
            return _point(int(braced[1], 16))
        ((first, _),) = self._hex(4)
        pair = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})").match(self._text, self._at)
        if 0xD800 <= first < 0xDC00 and pair:
            self._at = pair.end()
            return _point(0x10000 + ((first - 0xD800) << 10) + int(pair[1], 16) - 0xDC00)
        return _point(first)

    def _property(self, negated: bool) -> Ranges:
        name = _PROPERTY.match(self._text, self._at)
        category = name and _category(_CATEGORY_NAMES.get(name[2], name[2]))
        if name is None or not category:
            raise NoWayError(self._message("this Unicode property is not supported"))
        self._at = name.end()
        return without(ANY_CHARACTER, category) if negated != bool(name[1]) else category

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _message(self, why: str) -> str:
        shown = self._text if len(self._text) <= 80 else self._text[:77] + "..."
        return f"{why}: {shown!r}, character {self._at + 1}"

    def _error(self, why: str) -> ConstraintError:
        return ConstraintError("not a regular expression: " + self._message(why))


def _point(point: int) -> Ranges:
    return ((point, point),)


def _number(digits: str) -> int:
    return int(digits[:9]) if len(digits) <= 9 else 10**9


def _wide(letter: str) -> Ranges:
    """Returns a class as wide as any dialect has it, where that of a complement is no narrower."""
    match letter:
        case "d":
            return _category("Nd")
        case "s":
            return _WIDE_SPACE
        case "w":
            return merged_ranges([*_category("L"), *_category("N"), *_category("M"), *_WORD])
        case "D":
            return without(ANY_CHARACTER, _DIGITS)
        case "S":
            return without(ANY_CHARACTER, _SPACE)
        case _:
            return without(ANY_CHARACTER, _WORD)


@lru_cache(64)
def _category(name: str) -> Ranges:
    """Returns the characters of a general category, or of a group of them, or nothing."""
    return tuple(
        merged_ranges(
            each
            for category, ranges in _categories().items()
            if category == name or category[0] == name
            for each in ranges
        )
    )


@lru_cache(1)
def _categories() -> dict[str, list[Range]]:
    found: dict[str, list[Range]] = {}
    start, current = 0, unicodedata.category("\0")
    for point in range(1, sys.maxunicode + 2):
        category = unicodedata.category(chr(point)) if point <= sys.maxunicode else ""
        if category != current:
            found.setdefault(current, []).append((start, point - 1))
            start, current = point, category
    return found
