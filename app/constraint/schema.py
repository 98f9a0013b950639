"""A JSON schema as an expression: the texts of the values that are written for it.

The world is closed: members are written in the order of the schema, and others only where
`additionalProperties` allows them explicitly, or where an object has no listed ones. Values of any
kind are nested to a limited depth. So not every valid value is written, but each that is written is
valid.
"""

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR
from typing import Any

from jsonschema_rs import FancyRegexOptions, Registry, validator_for

from app.constraint.characters import ANY_CHARACTER
from app.constraint.expressions import (
    EMPTY,
    NEVER,
    Counted,
    Embedded,
    Expression,
    Listed,
    any_of,
    optional,
    repeated,
    sequence,
    symbols,
    word,
)
from app.constraint.formats import PATTERNS, UNSUPPORTED
from app.constraint.keywords import Schema, Shape
from app.constraint.limits import MOST_STATES, ConstraintError, Effort, NoWayError
from app.constraint.machines import Machine, complement, intersection, machine
from app.constraint.numbers import NUMBER, integers, numbers
from app.constraint.patterns import search, whole_match
from app.constraint.shapes import Shapes
from app.constraint.texts import Text, any_string, literal
from app.constraint.values import has_type, type_of

MOST_LENGTH = 100_000  # characters of a string that has a bound
_UNROLLED_LENGTH = 4  # a string with so few characters is not counted
_MOST_VALUES = 10_000  # of enums in one schema
_PRINTABLE = repeated(symbols([(0x20, 0x7E)]), 0, None)
_PATTERN_OPTIONS = FancyRegexOptions(size_limit=2**20)


@dataclass(frozen=True)
class Depths:
    """How often a reference may refer to itself, and how deep values of any kind are nested.

    Lengths are `counted`, or each of them is a state of its own. The automaton has at most
    `most_states`.
    """

    references: int
    values: int
    most_states: int = MOST_STATES
    counted: bool = True


def schema_expression(root: Any, text: Text, depths: Depths, effort: Effort) -> Expression:
    """Returns the values of a schema.

    Raises ConstraintError with the path of what is wrong, or NoWayError with that of what cannot be
    expressed.
    """
    return _Writer(root, text, depths, effort).value((Schema(root, ""),))


def object_expression(text: Text, depth: int) -> Expression:
    """Returns any object with values that are nested to a depth, the object included."""
    return _any_object(text, depth)


def anything(text: Text, depth: int) -> Expression:
    """Returns a value of any kind. Depth 0 has no arrays and no objects."""
    parts = [
        text.string(any_string(text)),
        NUMBER,
        *(literal(value, text) for value in (True, False, None)),
    ]
    if depth > 0:
        item = anything(text, depth - 1)
        items = _separated(item, 0, None, text)
        parts += [
            sequence(text.open_array, items, text.close_array),
            _any_object(text, depth, item),
        ]
    return any_of(parts)


def _any_object(text: Text, depth: int, value: Expression | None = None) -> Expression:
    value = anything(text, depth - 1) if value is None else value
    member = sequence(text.any_key(), value)
    return sequence(text.open_object, _separated(member, 0, None, text), text.close_object)


def _separated(item: Expression, least: int, most: int | None, text: Text) -> Expression:
    """Returns so many items with commas between them."""
    if most == 0 or item is NEVER:
        return NEVER if least > 0 else EMPTY
    more = repeated(
        sequence(text.comma, item), max(least - 1, 0), None if most is None else most - 1
    )
    items = sequence(item, more)
    return items if least > 0 else optional(items)


class _Writer:
    """Writes the parts of one schema."""

    def __init__(self, root: Any, text: Text, depths: Depths, effort: Effort) -> None:
        self._text = text
        self._depths = depths
        self._effort = effort
        self._shapes = Shapes(root, depths.references, effort)
        self._values_left = _MOST_VALUES
        self._contents: dict[tuple[Any, ...], Expression] = {}
        self._name_machines: dict[str, Machine] = {}

    def value(self, schemas: tuple[Schema, ...]) -> Expression:
        """Returns the values that are valid by each of the schemas."""
        return any_of([self._shape(shape) for shape in self._shapes.of_all(schemas)])

    def _shape(self, shape: Shape) -> Expression:
        self._effort.take()
        try:
            if shape.values is not None:
                return self._enumerated(shape)
            if shape.types is None and shape.emitted_types >= {"object", "array", "string"}:
                return anything(self._text, self._depths.values)
            return any_of([self._typed(shape, name) for name in sorted(shape.emitted_types)])
        except ConstraintError as error:
            error.path = error.path or shape.path
            raise

    def _typed(self, shape: Shape, name: str) -> Expression:
        match name:
            case "null":
                return literal(None, self._text)
            case "boolean":
                return any_of([literal(True, self._text), literal(False, self._text)])
            case "integer":
                return self._integer(shape)
            case "number":
                return self._number(shape)
            case "string":
                content = self._string(shape)
                return NEVER if content is NEVER else self._text.string(content)
            case "array":
                return self._array(shape)
            case _:
                return self._object(shape)

    def _enumerated(self, shape: Shape) -> Expression:
        values = [each for each in shape.values or () if has_type(each, shape.types)]
        self._values_left -= len(values)
        if self._values_left < 0:
            raise NoWayError(f"there are more than {_MOST_VALUES} values in enums", shape.path)
        if shape != Shape(shape.path, shape.types, shape.values):
            values = [each for each in values if self._is_valid(each, shape)]
        return any_of([literal(each, self._text) for each in values])

    def _is_valid(self, value: Any, shape: Shape) -> bool:
        """Returns whether a value has what the shape demands beside being one of its values."""
        keywords: dict[str, Any] = {}
        if type_of(value) in ("object", "array"):
            raise NoWayError("values in brackets are limited by other keywords too", shape.path)
        if shape.least is not None:
            keywords["exclusiveMinimum" if shape.least[1] else "minimum"] = float(shape.least[0])
        if shape.most is not None:
            keywords["exclusiveMaximum" if shape.most[1] else "maximum"] = float(shape.most[0])
        if shape.most_length is not None:
            keywords["maxLength"] = shape.most_length
        keywords["minLength"] = shape.least_length
        keywords["allOf"] = [
            True,
            *({"pattern": pattern} for pattern in shape.patterns),
            *({"format": name} for name in shape.formats),
            *({"multipleOf": float(number)} for number in shape.multiples),
        ]
        validator = validator_for(
            keywords,
            validate_formats=True,
            registry=Registry([]),
            pattern_options=_PATTERN_OPTIONS,
        )
        return bool(validator.is_valid(value))

    def _integer(self, shape: Shape) -> Expression:
        least = most = None
        if shape.least is not None:
            bound, excluded = shape.least
            least = int(bound.to_integral_value(ROUND_CEILING))
            least += excluded and least == bound
        if shape.most is not None:
            bound, excluded = shape.most
            most = int(bound.to_integral_value(ROUND_FLOOR))
            most -= excluded and most == bound
        return integers(least, most, self._multiple(shape), self._effort)

    def _multiple(self, shape: Shape) -> int:
        multiple = 1
        for each in shape.multiples:
            if each <= 0:
                raise ConstraintError("multipleOf is not above 0")
            whole = each.as_integer_ratio()[0] == 1  # it divides 1
            if not whole and each != int(each):
                raise NoWayError("multiples of fractions are not supported")
            each_whole = 1 if whole else int(each)
            if multiple % each_whole and each_whole % multiple:
                raise NoWayError("multiples of two numbers are not supported")
            multiple = max(multiple, each_whole)
        return multiple

    def _number(self, shape: Shape) -> Expression:
        if any(each != int(each) for each in shape.multiples):
            raise NoWayError("multiples of fractions are not supported")
        if shape.multiples:
            return self._integer(shape)
        least, most = shape.least or (None, False), shape.most or (None, False)
        return numbers(least[0], most[0], least[1], most[1], self._effort)

    def _string(self, shape: Shape) -> Expression:
        """Returns the content of a string, or NEVER."""
        least, most = shape.least_length, shape.most_length
        if most is not None and most < least:
            return NEVER
        if least > MOST_LENGTH:
            raise NoWayError(f"minLength above {MOST_LENGTH} is not supported")
        if most is not None:
            most = max(least, min(most, MOST_LENGTH))
        key = (least, most, shape.patterns, shape.formats)
        if key not in self._contents:
            self._contents[key] = self._content(shape, least, most)
        return self._contents[key]

    def _content(self, shape: Shape, least: int, most: int | None) -> Expression:
        machines = [search(pattern, self._effort) for pattern in shape.patterns]
        for name in shape.formats:
            if name in UNSUPPORTED:
                raise NoWayError(f"the format {name!r} is not supported")
            if name in PATTERNS:
                machines.append(whole_match(PATTERNS[name], self._effort))
        character = self._text.character(ANY_CHARACTER)
        if not machines:
            if least == 0 and most is None:
                return repeated(character, 0, None)
            if not self._depths.counted or (most is not None and most <= _UNROLLED_LENGTH):
                return repeated(character, least, most)
            return Counted(character, least, most)
        return self._limited(machines, least, most)

    def _limited(self, machines: list[Machine], least: int, most: int | None) -> Expression:
        """Returns the strings that all machines accept, with a length between the bounds."""
        both = machines[0]
        for each in machines[1:]:
            both = intersection(both, each, self._effort)
        if both.accepts_nothing:
            return NEVER
        if not _lengths_within(both, least, most):
            lengths = repeated(symbols(ANY_CHARACTER), least, most)
            both = intersection(both, machine(lengths, self._effort), self._effort)
        return NEVER if both.accepts_nothing else Embedded(both, self._text.character)

    def _array(self, shape: Shape) -> Expression:
        least, most = shape.least_items, shape.most_items
        if shape.unique and (most is None or most > 1):
            raise NoWayError("uniqueItems is not supported")
        item = self.value(shape.items) if shape.items else anything(self._text, self._depths.values)
        prefix = [self.value(schemas) for schemas in shape.prefix]
        for index, each in enumerate(prefix):
            if each is NEVER:
                most = min(index, index if most is None else most)
        if item is NEVER:
            most = min(len(prefix), len(prefix) if most is None else most)
        if most is not None and most < least:
            return NEVER
        text = self._text
        if not prefix or most == 0:
            items = _separated(item, least, most, text)
        else:
            shown = len(prefix) if most is None else min(len(prefix), most)
            items = EMPTY
            if item is not NEVER and (most is None or most > shown):
                items = repeated(
                    sequence(text.comma, item),
                    max(least - shown, 0),
                    None if most is None else most - shown,
                )
            for index in reversed(range(shown)):
                items = sequence(*([text.comma] if index else []), prefix[index], items)
                items = optional(items) if index >= least else items
        return NEVER if items is NEVER else sequence(text.open_array, items, text.close_array)

    def _object(self, shape: Shape) -> Expression:
        text = self._text
        parts: list[tuple[Expression, bool]] = []
        names = dict.fromkeys((*shape.properties, *shape.required))
        for name in names:
            if shape.patterns_of_names and not name.isascii():
                raise NoWayError("names beyond ASCII are not supported beside patternProperties")
            schemas = tuple(
                schema
                for pattern, schema in shape.patterns_of_names
                if self._names(pattern).accepts(map(ord, name))
            )
            if name in shape.properties:
                schemas += shape.properties[name]
            elif shape.closed or not schemas:
                # Only if it is not closed, the patterns are those of the same schema.
                schemas += shape.additional or ()
            value = self.value(schemas) if schemas else anything(text, self._depths.values)
            may_be_left_out = name not in shape.required
            if value is not NEVER:
                parts.append((sequence(text.key(name), value), may_be_left_out))
            elif not may_be_left_out:
                return NEVER
        members = self._members(shape, parts, self._more_members(shape, list(names)))
        return NEVER if members is NEVER else sequence(text.open_object, members, text.close_object)

    def _members(
        self, shape: Shape, parts: list[tuple[Expression, bool]], more: Expression
    ) -> Expression:
        """Returns the listed members, some of which may be left out, and others behind them."""
        least, most = shape.least_members, shape.most_members
        needed = sum(not may_be_left_out for _, may_be_left_out in parts)
        if not parts:
            # Two members may have the same name, and then count once.
            if least > 1 and more is not NEVER:
                raise NoWayError("minProperties above 1 is not supported here")
            return _separated(more, least, most, self._text)
        if most is not None and most < max(needed, least):
            return NEVER
        if least > needed:
            if more is not NEVER or len(parts) > least:
                raise NoWayError("minProperties is not supported beside optional properties")
            if len(parts) < least:
                return NEVER
            parts = [(part, False) for part, _ in parts]
        elif most == needed:
            parts = [each for each in parts if not each[1]]
            more = NEVER
        elif most is not None and (more is not NEVER or len(parts) > most):
            raise NoWayError("maxProperties is not supported beside optional properties")
        if more is not NEVER:
            parts = [*parts, (_separated(more, 1, None, self._text), True)]
        return Listed(tuple(parts), self._text.comma)

    def _more_members(self, shape: Shape, names: list[str]) -> Expression:
        """Returns a member that is not listed, or NEVER if none may be written."""
        if not shape.writes_others:
            return NEVER
        text = self._text
        listed: Machine | None = None
        if names:
            listed = machine(any_of([word(map(ord, name)) for name in names]), self._effort)
        others = {pattern: self._names(pattern) for pattern, _ in shape.patterns_of_names}
        members = []
        for pattern, schema in shape.patterns_of_names:
            excluded = [each for other, each in others.items() if other != pattern]
            own = others[pattern]
            if excluded:
                own = intersection(own, machine(_PRINTABLE, self._effort), self._effort)
            name = self._name(own, [*excluded, *([listed] if listed else [])])
            members.append(sequence(text.any_key(name), self.value((schema,))))
        if shape.additional is not None or not (names or members):
            excluded = [*others.values(), *([listed] if listed else [])]
            # Dialects of patterns differ beyond ASCII, and in what is no printable character.
            within = machine(_PRINTABLE, self._effort) if others else None
            unlisted = self._name(within, excluded) if excluded else None
            value = (
                anything(text, self._depths.values)
                if shape.additional is None
                else self.value(shape.additional)
            )
            members.append(sequence(text.any_key(unlisted), value))
        return any_of(members)

    def _names(self, pattern: str) -> Machine:
        """Returns the names that a pattern of `patternProperties` stands for."""
        if pattern not in self._name_machines:
            self._name_machines[pattern] = search(pattern, self._effort)
        return self._name_machines[pattern]

    def _name(self, within: Machine | None, excluded: list[Machine]) -> Expression:
        """Returns the content of the names that are in one machine and in none of the others."""
        anything_else = repeated(symbols(ANY_CHARACTER), 0, None)
        kept = machine(anything_else, self._effort) if within is None else within
        for each in excluded:
            kept = intersection(kept, complement(each, (0, 0x10FFFF)), self._effort)
        return NEVER if kept.accepts_nothing else Embedded(kept, self._text.character)


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
