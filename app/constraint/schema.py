"""A JSON schema as an expression: the texts of the values that are written for it.

The world is closed: members are written in the order of the schema, and others only where
`additionalProperties` allows them explicitly, or where an object has no listed ones. Values of any
kind are nested to a limited depth. So not every valid value is written, but each that is written is
valid.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from jsonschema_rs import FancyRegexOptions, Registry, validator_for

from app.constraint.expressions import (
    EMPTY,
    NEVER,
    Expression,
    Listed,
    any_of,
    optional,
    repeated,
    sequence,
)
from app.constraint.keywords import Schema, Shape, higher, lower
from app.constraint.limits import (
    MOST_STATES,
    ConstraintError,
    Effort,
    NoWayError,
    TooLargeError,
)
from app.constraint.machines import Machine
from app.constraint.numbers import NUMBER, integers, numbers
from app.constraint.shapes import Shapes
from app.constraint.strings import Strings
from app.constraint.texts import Text, any_string, literal
from app.constraint.values import has_type, same, type_of

_MOST_VALUES = 10_000  # of enums in one schema
_MOST_REORDERED = 6  # values that unique items have in any order
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
        self._strings = Strings(text.character, depths.counted, effort)

    def value(self, schemas: tuple[Schema, ...]) -> Expression:
        """Returns the values that are valid by each of the schemas."""
        return any_of([self._shape(shape) for shape in self._shapes.of_all(schemas)])

    def _shape(self, shape: Shape) -> Expression:
        self._effort.take()
        try:
            if shape.values is not None:
                return self._enumerated(shape)
            if shape == Shape(shape.path):
                return anything(self._text, self._depths.values)
            return any_of([self._typed(shape, name) for name in sorted(shape.emitted_types)])
        except ConstraintError as error:
            error.path = error.path or shape.path
            raise

    def _typed(self, shape: Shape, name: str) -> Expression:
        match name:
            case "null" | "boolean":
                values = [None] if name == "null" else [True, False]
                return any_of([literal(each, self._text) for each in values if shape.may_be(each)])
            case "integer":
                return any_of([self._integer(each) for each in _between_excluded(shape)])
            case "number":
                return any_of([self._number(each) for each in _between_excluded(shape)])
            case "string":
                content = self._strings.content(shape)
                return NEVER if content is NEVER else self._text.string(content)
            case "array":
                return self._array(_not_empty(shape, [], least_items=1))
            case _:
                return self._object(_not_empty(shape, {}, least_members=1))

    def _enumerated(self, shape: Shape) -> Expression:
        values = self._values(shape)
        self._values_left -= len(values)
        if self._values_left < 0:
            raise TooLargeError(f"there are more than {_MOST_VALUES} values in enums", shape.path)
        return any_of([literal(each, self._text) for each in values])

    def _values(self, shape: Shape) -> list[Any]:
        """Returns those of a shape's values that have the shape."""
        values = [
            each for each in shape.values or () if has_type(each, shape.types) if shape.may_be(each)
        ]
        if shape != Shape(shape.path, shape.types, shape.values, excluded=shape.excluded):
            values = [each for each in values if self._is_valid(each, shape)]
        return values

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
            *({"not": {"pattern": pattern}} for pattern in shape.excluded_patterns),
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

    def _array(self, shape: Shape) -> Expression:
        least, most = shape.least_items, shape.most_items
        if shape.unique and (most is None or most > 1):
            return self._unique_array(shape)
        if shape.contained:
            return self._containing_array(shape)
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

    def _unique_array(self, shape: Shape) -> Expression:
        """Returns arrays without two equal items. If there are many values, they are in order."""
        values = None if shape.prefix or shape.contained else self._few_values(shape.items)
        if values is None:
            raise NoWayError("uniqueItems is supported only for items out of listed values")
        text, least = self._text, shape.least_items
        most = len(values) if shape.most_items is None else min(shape.most_items, len(values))
        if most < least:
            return NEVER
        items = [literal(each, text) for each in values]
        if len(items) > _MOST_REORDERED:
            listed = tuple((item, True) for item in items)
            inner: Expression = Listed(listed, text.comma, least, most)
        else:
            inner = _any_order(tuple(items), least, most, text.comma)
        return sequence(text.open_array, inner, text.close_array)

    def _few_values(self, schemas: tuple[Schema, ...]) -> list[Any] | None:
        """Returns the different values that are valid by each of the schemas, if they are few."""
        values: list[Any] = []
        for shape in self._shapes.of_all(schemas):
            if shape.values is not None:
                own = self._values(shape)
            elif shape.types is not None and shape.types <= {"null", "boolean"}:
                own = [None] if "null" in shape.types else []
                own += [False, True] if "boolean" in shape.types else []
            else:
                return None
            for value in own:
                if shape.may_be(value) and not any(same(value, each) for each in values):
                    values.append(value)
        return values

    def _containing_array(self, shape: Shape) -> Expression:
        """Returns arrays with at least one item that `contains` demands."""
        if shape.prefix or len(shape.contained) > 1:
            raise NoWayError("contains is not supported beside prefixItems or another contains")
        text, least, most = self._text, max(shape.least_items, 1), shape.most_items
        wanted = self.value((*shape.items, *shape.contained))
        item = self.value(shape.items) if shape.items else anything(text, self._depths.values)
        before = least if most is None else most
        self._effort.take(before)

        def others(least: int, most: int | None) -> Expression:
            return repeated(sequence(text.comma, item), max(least, 0), most)

        # The item that is demanded is the first, the second, and so on.
        arrays = [
            sequence(
                sequence(item, others(index - 1, index - 1), text.comma) if index else EMPTY,
                wanted,
                others(least - index - 1, None if most is None else most - index - 1),
            )
            for index in range(before)
        ]
        if most is None:
            arrays.append(
                sequence(item, others(least - 1, None), text.comma, wanted, others(0, None))
            )
        inner = any_of(arrays)
        return NEVER if inner is NEVER else sequence(text.open_array, inner, text.close_array)

    def _object(self, shape: Shape) -> Expression:
        if shape.others_than:
            return any_of([self._object(each) for each in self._with_another_member(shape)])
        text = self._text
        parts: list[tuple[Expression, bool]] = []
        names = dict.fromkeys((*shape.properties, *shape.required))
        right_names = self._right_names(shape)
        for name in names:
            if shape.patterns_of_names and not name.isascii():
                raise NoWayError("names beyond ASCII are not supported beside patternProperties")
            schemas = tuple(
                schema
                for pattern, schema in shape.patterns_of_names
                if self._strings.with_match(pattern).accepts(map(ord, name))
            )
            if name in shape.properties:
                schemas += shape.properties[name]
            elif shape.closed or not schemas:
                # Only if it is not closed, the patterns are those of the same schema.
                schemas += shape.additional or ()
            value = NEVER
            if right_names is None or right_names.accepts(map(ord, name)):
                value = self.value(schemas) if schemas else anything(text, self._depths.values)
            may_be_left_out = name not in shape.required
            if value is not NEVER:
                parts.append((sequence(text.key(name), value), may_be_left_out))
            elif not may_be_left_out:
                return NEVER
        more = self._more_members(shape, list(names), right_names)
        members = self._members(shape, parts, more)
        return NEVER if members is NEVER else sequence(text.open_object, members, text.close_object)

    def _with_another_member(self, shape: Shape) -> Iterator[Shape]:
        """Yields shapes with a listed member that is not one of those that `others_than` names."""
        (names, patterns), *more = shape.others_than
        for name in dict.fromkeys((*shape.properties, *shape.required)):
            if name in names or any(
                self._strings.with_match(each).accepts(map(ord, name)) for each in patterns
            ):
                continue
            # Dialects of patterns differ beyond ASCII.
            if name.isascii() or not patterns:
                required = (*shape.required, name)
                yield replace(shape, required=required, others_than=tuple(more))

    def _right_names(self, shape: Shape) -> Machine | None:
        """Returns the names that `propertyNames` allows, or None if it is not there."""
        if not shape.names:
            return None
        kinds = []
        for each in self._shapes.of_all(shape.names):
            if each.values is not None:
                texts = [value for value in self._values(each) if isinstance(value, str)]
                kinds.append(self._strings.listed(texts))
            elif each.types is None or "string" in each.types:
                kinds.append(self._strings.of_shape(each))
        return self._strings.either(kinds)

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
        if most == needed:
            more = NEVER
        if more is not NEVER:
            if most is not None:
                raise NoWayError("maxProperties is not supported beside optional properties")
            # Others may have the same name, and count as one.
            parts = [*parts, (_separated(more, 1, None, self._text), True)]
        if len(parts) < least or (most is not None and most < max(needed, least)):
            return NEVER
        if most is not None and most >= len(parts):
            most = None
        return Listed(tuple(parts), self._text.comma, least, most)

    def _more_members(
        self, shape: Shape, names: list[str], right_names: Machine | None
    ) -> Expression:
        """Returns a member that is not listed, or NEVER if none may be written."""
        if not shape.writes_others:
            return NEVER
        text = self._text
        listed: Machine | None = None
        if names:
            listed = self._strings.listed(names)
        others = {
            pattern: self._strings.with_match(pattern) for pattern, _ in shape.patterns_of_names
        }
        members = []
        for pattern, schema in shape.patterns_of_names:
            excluded = [each for other, each in others.items() if other != pattern]
            allowed = [others[pattern]]
            allowed += [] if right_names is None else [right_names]
            allowed += [self._strings.printable()] if excluded else []
            name = self._strings.name(allowed, [*excluded, *([listed] if listed else [])])
            members.append(sequence(text.any_key(name), self.value((schema,))))
        if shape.additional is not None or not (shape.lists_members or members):
            excluded = [*others.values(), *([listed] if listed else [])]
            allowed = [] if right_names is None else [right_names]
            allowed += [self._strings.printable()] if others else []
            unlisted = self._strings.name(allowed, excluded) if allowed or excluded else None
            value = (
                anything(text, self._depths.values)
                if shape.additional is None
                else self.value(shape.additional)
            )
            members.append(sequence(text.any_key(unlisted), value))
        return any_of(members)


def _any_order(
    parts: tuple[Expression, ...], least: int, most: int, separator: Expression
) -> Expression:
    """Returns so many different parts in any order, with a separator between each two of them."""
    kept: dict[frozenset[int], Expression] = {}

    def behind(used: frozenset[int]) -> Expression:
        if used not in kept:
            more = [
                sequence(separator if used else EMPTY, part, behind(used | {index}))
                for index, part in enumerate(parts)
                if index not in used and len(used) < most
            ]
            kept[used] = optional(any_of(more)) if len(used) >= least else any_of(more)
        return kept[used]

    return behind(frozenset())


def _between_excluded(shape: Shape) -> list[Shape]:
    """Returns shapes of the numbers between those that are excluded."""
    cuts = sorted(
        Decimal(str(each)) for each in shape.excluded if type_of(each) in ("integer", "number")
    )
    bounds = [(cut, True) for cut in cuts]
    return [
        replace(shape, least=higher(shape.least, low), most=lower(shape.most, high))
        for low, high in zip([None, *bounds], [*bounds, None], strict=True)
    ]


def _not_empty(shape: Shape, empty: Any, **least: int) -> Shape:
    """Returns the shape of arrays or objects without the empty one, if that is excluded."""
    excluded = [each for each in shape.excluded if type_of(each) == type_of(empty)]
    if any(each != empty for each in excluded):
        raise NoWayError("not with values in brackets is not supported")
    return (
        replace(shape, **{name: max(1, getattr(shape, name)) for name in least})
        if excluded
        else shape
    )
