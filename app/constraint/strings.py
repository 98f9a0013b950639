"""The strings of a schema: their characters, as expressions over bytes or as automata.

Automata are needed where a pattern, a format or the names of members decide. They read characters,
however these are written.
"""

from collections.abc import Iterable

from app.constraint.characters import ANY_CHARACTER
from app.constraint.expressions import (
    NEVER,
    Counted,
    Embedded,
    Expression,
    Writing,
    any_of,
    repeated,
    symbols,
    word,
)
from app.constraint.formats import PATTERNS, UNSUPPORTED
from app.constraint.keywords import Shape
from app.constraint.limits import Effort, NoWayError
from app.constraint.machines import Machine, complement, intersection, machine
from app.constraint.patterns import search, whole_match

MOST_LENGTH = 100_000  # characters of a string that has a bound
_UNROLLED_LENGTH = 4  # a string with so few characters is not counted
_MOST_LIMITED = 10_000  # states of strings with a length and a pattern, or a format
_CHARACTERS = (0, 0x10FFFF)
# Dialects of patterns differ beyond ASCII, and in what is no printable character.
_PRINTABLE = repeated(symbols([(0x20, 0x7E)]), 0, None)


class Strings:
    """Makes the strings of one schema. `character` writes one character.

    Lengths are `counted`, or each of them is a state of its own.
    """

    def __init__(self, character: Writing, counted: bool, effort: Effort) -> None:
        self._character = character
        self._counted = counted
        self._effort = effort
        self._contents: dict[tuple[object, ...], Expression] = {}
        self._searched: dict[str, Machine] = {}

    def content(self, shape: Shape) -> Expression:
        """Returns the content of a string, or NEVER."""
        least, most = shape.least_length, shape.most_length
        if most is not None and most < least:
            return NEVER
        if least > MOST_LENGTH:
            raise NoWayError(f"minLength above {MOST_LENGTH} is not supported")
        if most is not None:
            most = max(least, min(most, MOST_LENGTH))
        texts = tuple(each for each in shape.excluded if isinstance(each, str))
        key = (least, most, shape.patterns, shape.formats, texts, shape.excluded_patterns)
        if key not in self._contents:
            self._contents[key] = self._content(shape, least, most)
        return self._contents[key]

    def of_shape(self, shape: Shape) -> Machine:
        """Returns the strings that have a shape, which must not list its values."""
        lengths = repeated(symbols(ANY_CHARACTER), shape.least_length, shape.most_length)
        both = machine(lengths, self._effort)
        for each in self._machines(shape):
            both = intersection(both, each, self._effort)
        return both

    def listed(self, texts: Iterable[str]) -> Machine:
        """Returns these strings and no others."""
        return machine(any_of([word(map(ord, text)) for text in texts]), self._effort)

    def either(self, machines: Iterable[Machine]) -> Machine:
        """Returns the strings that at least one of the machines accepts."""
        parts = [Embedded(each, symbols) for each in machines if not each.accepts_nothing]
        return machine(any_of(parts), self._effort)

    def printable(self) -> Machine:
        """Returns the strings of which all dialects of patterns think alike."""
        return machine(_PRINTABLE, self._effort)

    def with_match(self, pattern: str) -> Machine:
        """Returns the names in which a pattern matches somewhere."""
        if pattern not in self._searched:
            self._searched[pattern] = search(pattern, self._effort)
        return self._searched[pattern]

    def name(self, allowed: list[Machine], excluded: list[Machine]) -> Expression:
        """Returns the content of the names that all allowed machines accept, and no other one."""
        kept = machine(repeated(symbols(ANY_CHARACTER), 0, None), self._effort)
        for each in (*allowed, *(complement(each, _CHARACTERS) for each in excluded)):
            kept = intersection(kept, each, self._effort)
        return NEVER if kept.accepts_nothing else Embedded(kept, self._character)

    def _content(self, shape: Shape, least: int, most: int | None) -> Expression:
        machines = self._machines(shape)
        character = self._character(ANY_CHARACTER)
        if not machines:
            if least == 0 and most is None:
                return repeated(character, 0, None)
            if not self._counted or (most is not None and most <= _UNROLLED_LENGTH):
                return repeated(character, least, most)
            return Counted(character, least, most)
        return self._limited(machines, least, most)

    def _machines(self, shape: Shape) -> list[Machine]:
        """Returns automata of characters. A string has the shape if all of them accept it.

        They know nothing of its length.
        """
        machines = [search(pattern, self._effort) for pattern in shape.patterns]
        for name in shape.formats:
            if name in UNSUPPORTED:
                raise NoWayError(f"the format {name!r} is not supported")
            if name in PATTERNS:
                machines.append(whole_match(PATTERNS[name], self._effort))
        texts = [each for each in shape.excluded if isinstance(each, str)]
        excluded = [self.listed(texts)] if texts else []
        excluded += [search(pattern, self._effort) for pattern in shape.excluded_patterns]
        if shape.excluded_patterns:
            machines.append(self.printable())
        return [*machines, *(complement(each, _CHARACTERS) for each in excluded)]

    def _limited(self, machines: list[Machine], least: int, most: int | None) -> Expression:
        """Returns the strings that all machines accept, with a length between the bounds."""
        both = machines[0]
        for each in machines[1:]:
            both = intersection(both, each, self._effort)
        if both.accepts_nothing:
            return NEVER
        if not _lengths_within(both, least, most):
            if most is not None:
                room = _shortest(both) + _MOST_LIMITED // len(both.edges)
                most = min(most, max(least, room))
            lengths = repeated(symbols(ANY_CHARACTER), least, most)
            both = intersection(both, machine(lengths, self._effort), self._effort)
        return NEVER if both.accepts_nothing else Embedded(both, self._character)


def _lengths_within(of: Machine, least: int, most: int | None) -> bool:
    """Returns whether all texts of a machine have a length between the bounds anyway."""
    if least == 0 and most is None:
        return True
    states = {0}
    for length in range(len(of.edges) + 1):
        accepts = any(of.accepting[state] for state in states)
        if accepts and (length < least or (most is not None and length > most)):
            return False
        if most is None and length >= least:
            return True
        states = {target for state in states for _, _, target in of.edges[state]}
        if not states:
            return True
    return False


def _shortest(of: Machine) -> int:
    """Returns the length of a machine's shortest text."""
    states, length = {0}, 0
    while not any(of.accepting[state] for state in states):
        states = {target for state in states for _, _, target in of.edges[state]}
        length += 1
    return length
