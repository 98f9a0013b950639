"""Regular expressions as trees over symbols, which are numbers that this file gives no meaning.

The functions build the trees and simplify them: an expression that matches nothing is `NEVER`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from app.constraint.machines import Machine

Range = tuple[int, int]  # the first and the last symbol
Ranges = tuple[Range, ...]  # sorted, and no two of them touch


class Writing(Protocol):
    """Writes one symbol out of the ranges as an expression over other symbols."""

    def __call__(self, ranges: Ranges) -> "Expression": ...


@dataclass(frozen=True, eq=False)
class Symbols:
    """One symbol out of the ranges."""

    ranges: Ranges


@dataclass(frozen=True, eq=False)
class Sequential:
    """The parts, one after another."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, eq=False)
class Alternatives:
    """Any one of the parts. Without parts it matches nothing."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, eq=False)
class Repeated:
    """The part, `least` to `most` times, or `least` times and more if `most` is None."""

    part: "Expression"
    least: int
    most: int | None


@dataclass(frozen=True, eq=False)
class Counted:
    """The same as `Repeated`, but counted and not unrolled.

    No match of the part may be the beginning of another, or of what follows. It is not empty.
    """

    part: "Expression"
    least: int
    most: int | None


@dataclass(frozen=True, eq=False)
class Listed:
    """The parts in their order, without some of those that may be left out.

    At least `least` parts are there, and at most `most` unless it is None. A separator stands
    between each two of them.
    """

    parts: tuple[tuple["Expression", bool], ...]  # whether each part may be left out
    separator: "Expression"
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, eq=False)
class Embedded:
    """What a machine accepts, with each of its symbols written as an expression."""

    machine: "Machine"
    writing: Writing


Expression = Symbols | Sequential | Alternatives | Repeated | Counted | Listed | Embedded

NEVER: Expression = Alternatives(())
EMPTY: Expression = Sequential(())


def symbols(ranges: Iterable[Range]) -> Expression:
    """Returns one symbol out of ranges, which may be in any order and overlap."""
    merged = merged_ranges(ranges)
    return Symbols(merged) if merged else NEVER


def word(text: Iterable[int]) -> Expression:
    """Returns these symbols, one after another."""
    return Sequential(tuple(Symbols(((symbol, symbol),)) for symbol in text))


def sequence(*parts: Expression) -> Expression:
    """Returns the parts, one after another."""
    if any(part is NEVER for part in parts):
        return NEVER
    parts = tuple(part for part in parts if part is not EMPTY)
    return parts[0] if len(parts) == 1 else Sequential(parts) if parts else EMPTY


def any_of(parts: Sequence[Expression]) -> Expression:
    """Returns any one of the parts."""
    parts = tuple(part for part in parts if part is not NEVER)
    return parts[0] if len(parts) == 1 else Alternatives(parts) if parts else NEVER


def optional(part: Expression) -> Expression:
    """Returns the part or nothing."""
    return EMPTY if part is NEVER else any_of((part, EMPTY))


def repeated(part: Expression, least: int, most: int | None) -> Expression:
    """Returns the part `least` to `most` times, or more if `most` is None."""
    if most is not None and most < least:
        return NEVER
    if part is NEVER or part is EMPTY or most == 0:
        return NEVER if part is NEVER and least > 0 else EMPTY
    return part if least == most == 1 else Repeated(part, least, most)


def merged_ranges(ranges: Iterable[Range]) -> Ranges:
    """Returns the same symbols in ranges that are sorted and do not touch."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def without(ranges: Iterable[Range], others: Iterable[Range]) -> Ranges:
    """Returns the symbols of the ranges that are not in the others."""
    left: list[Range] = []
    cuts = merged_ranges(others)
    for low, high in merged_ranges(ranges):
        for first, last in cuts:
            if last < low or first > high:
                continue
            if first > low:
                left.append((low, first - 1))
            low = last + 1
        if low <= high:
            left.append((low, high))
    return tuple(left)


def common(ranges: Iterable[Range], others: Iterable[Range]) -> Ranges:
    """Returns the symbols that are in both."""
    ranges = tuple(ranges)
    return without(ranges, without(ranges, others))
