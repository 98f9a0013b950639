"""Characters as bytes: UTF-8, and the inside of a JSON string.

Symbols of the expressions that are returned are bytes. Those that come in are code points.
"""

from functools import lru_cache

from app.constraint.expressions import (
    Expression,
    Range,
    Ranges,
    any_of,
    common,
    sequence,
    symbols,
    without,
    word,
)

ANY_CHARACTER: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # surrogates are no characters
CONTROL: Range = (0, 0x1F)
_ESCAPED: Ranges = (CONTROL, (0x22, 0x22), (0x5C, 0x5C))  # cannot stand unescaped in a JSON string
_SHORT_ESCAPES = {0x22: '"', 0x5C: "\\", 0x2F: "/", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t"}
_UTF8_SIZES = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))
_HEX = symbols(tuple(map(ord, pair)) for pair in ("09", "AF", "af"))  # type: ignore[misc]


@lru_cache(256)
def utf8(ranges: Ranges) -> Expression:
    """Returns one character out of the ranges in UTF-8."""
    return any_of([_bytes(part) for part in _byte_ranges(ranges)])


@lru_cache(256)
def in_json(ranges: Ranges) -> Expression:
    """Returns one character out of the ranges in a JSON string.

    Any character may be escaped with four digits if all characters are in the ranges. Otherwise
    only control characters may be.
    """
    raw = utf8(without(common(ranges, ANY_CHARACTER), _ESCAPED))
    short = symbols(
        (ord(letter), ord(letter))
        for point, letter in _SHORT_ESCAPES.items()
        if common(ranges, ((point, point),))
    )
    if not without(ANY_CHARACTER, ranges):
        return any_of([raw, sequence(word(b"\\"), any_of([short, _ANY_ESCAPE]))])
    controls = [
        sequence(word(b"u00"), word(b"%d" % (point >> 4)), _hex_digit(point & 15))
        for low, high in common(ranges, (CONTROL,))
        for point in range(low, high + 1)
    ]
    return any_of([raw, sequence(word(b"\\"), any_of([short, *controls]))])


def _hex_digit(value: int) -> Expression:
    digit = f"{value:x}"
    return symbols((ord(each), ord(each)) for each in {digit, digit.upper()})


def _any_escape() -> Expression:
    """Returns what follows the backslash of \\uXXXX. Surrogates come in pairs only."""
    no_d = symbols([(0x30, 0x39), (0x41, 0x43), (0x45, 0x46), (0x61, 0x63), (0x65, 0x66)])
    d = symbols([(0x44, 0x44), (0x64, 0x64)])
    low = symbols([(0x30, 0x37)])
    first = symbols([(0x38, 0x39), (0x41, 0x42), (0x61, 0x62)])
    second = symbols([(0x43, 0x46), (0x63, 0x66)])
    pair = sequence(first, _HEX, _HEX, word(b"\\u"), d, second, _HEX, _HEX)
    tail = any_of([sequence(low, _HEX, _HEX), pair])
    return sequence(word(b"u"), any_of([sequence(no_d, _HEX, _HEX, _HEX), sequence(d, tail)]))


_ANY_ESCAPE = _any_escape()


def _bytes(parts: tuple[Range, ...]) -> Expression:
    return sequence(*(symbols([part]) for part in parts))


def _byte_ranges(ranges: Ranges) -> list[tuple[Range, ...]]:
    """Returns sequences of ranges of bytes that are together the characters of the ranges."""
    sequences: list[tuple[Range, ...]] = []
    for low, high in common(ranges, ANY_CHARACTER):
        for first, last in _UTF8_SIZES:
            if low <= last and high >= first:
                start, end = chr(max(low, first)).encode(), chr(min(high, last)).encode()
                sequences += _split(start, end)
    return sequences


def _split(start: bytes, end: bytes) -> list[tuple[Range, ...]]:
    """Returns the sequences of bytes from `start` to `end`, which have the same length."""
    if len(start) == 1:
        return [((start[0], end[0]),)]
    if start[0] == end[0]:
        head: Range = (start[0], start[0])
        return [(head, *tail) for tail in _split(start[1:], end[1:])]
    least, most = bytes([0x80] * (len(start) - 1)), bytes([0xBF] * (len(start) - 1))
    sequences: list[tuple[Range, ...]] = []
    first, last = start[0], end[0]
    if start[1:] != least:
        sequences += [((first, first), *tail) for tail in _split(start[1:], most)]
        first += 1
    tails = []
    if end[1:] != most:
        tails = [((last, last), *tail) for tail in _split(least, end[1:])]
        last -= 1
    if first <= last:
        sequences.append(((first, last), *((0x80, 0xBF) for _ in least)))
    return sequences + tails
