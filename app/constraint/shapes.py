"""JSON schemas without references and combinations: a schema becomes a list of shapes.

A value is valid if it has one of the shapes. `allOf`, and keywords beside `anyOf` or `$ref`, are
merged into each shape. Whatever cannot be expressed so raises NoWayError with its path. A reference
that refers to itself is followed a limited number of times, and stands for nothing after that.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from app.constraint.keywords import Schema, Shape, list_of, plain_shape
from app.constraint.limits import ConstraintError, Effort, NoWayError, TooLargeError
from app.constraint.values import common_types, same, type_of

_MOST_SHAPES = 300  # of one schema
_MOST_LEVELS = 60  # of combinations in combinations


class Shapes:
    """Finds the shapes of the parts of one schema."""

    def __init__(self, root: Any, depth: int, effort: Effort) -> None:
        self._root = root
        self._depth = depth
        self._effort = effort
        self._level = 0

    def of_all(self, schemas: Iterable[Schema]) -> list[Shape]:
        """Returns the shapes of the values that are valid by each of these schemas.

        There are none if nothing is valid.
        """
        shapes: list[Shape] | None = None
        for schema in schemas:
            own = self._of(schema)
            shapes = own if shapes is None else self._products(shapes, own, schema.path)
        return [Shape("")] if shapes is None else shapes

    def _of(self, schema: Schema) -> list[Shape]:
        self._effort.take()
        if self._level > _MOST_LEVELS:
            raise NoWayError(f"more than {_MOST_LEVELS} combinations are nested", schema.path)
        self._level += 1
        try:
            return self._combined(schema)
        finally:
            self._level -= 1

    def _combined(self, schema: Schema) -> list[Shape]:
        value = schema.value
        if value is True:
            return [Shape(schema.path)]
        if value is False:
            return []
        if not isinstance(value, dict):
            raise ConstraintError("a schema is neither an object nor true or false", schema.path)
        shapes = [plain_shape(schema)]
        if "$ref" in value:
            target = self._target(schema, value["$ref"])
            shapes = self._products(shapes, [] if target is None else self._of(target), schema.path)
        for index, each in enumerate(list_of(schema, "allOf")):
            own = self._of(schema.inner(each, "allOf", index))
            shapes = self._products(shapes, own, schema.path)
        if "anyOf" in value:
            branches = [
                shape
                for index, each in enumerate(list_of(schema, "anyOf"))
                for shape in self._of(schema.inner(each, "anyOf", index))
            ]
            shapes = self._products(shapes, branches, schema.path)
        if "oneOf" in value:
            shapes = self._one_of(schema, shapes)
        if value.get("unevaluatedProperties", True) is not True:
            path = f"{schema.path}/unevaluatedProperties"
            shapes = [self._evaluated(shape, path) for shape in shapes]
        return shapes

    def _evaluated(self, shape: Shape, path: str) -> Shape:
        """Returns the shape without the members that `unevaluatedProperties` limits."""
        if shape.additional is not None:
            return shape
        if not shape.properties.keys() >= set(shape.required):
            raise NoWayError("a member is required that properties do not name", path)
        return replace(shape, closed=shape.closed or not shape.patterns_of_names)

    def _one_of(self, schema: Schema, shapes: list[Shape]) -> list[Shape]:
        """Returns the shapes merged with those of `oneOf`, if no value can have two of them."""
        path = f"{schema.path}/oneOf"
        branches = [
            self._of(schema.inner(each, "oneOf", index))
            for index, each in enumerate(list_of(schema, "oneOf"))
        ]
        merged = [self._products(shapes, branch, path) for branch in branches]
        exclusive = []
        for index, own in enumerate(merged):
            others = [
                shape for branch in (*branches[:index], *branches[index + 1 :]) for shape in branch
            ]
            exclusive += [self._made_exclusive(mine, others, path) for mine in own]
        return exclusive

    def _made_exclusive(self, shape: Shape, others: list[Shape], path: str) -> Shape:
        """Returns the shape, without members if need be, so that no value has another one too."""
        for other in others:
            if self._excludes(shape, other, 3):
                continue
            optional = [
                name
                for name in other.required
                if name in shape.properties and name not in shape.required
            ]
            if not optional:
                raise NoWayError("a value may be valid by two alternatives of oneOf", path)
            without = {**shape.properties, optional[0]: (Schema(False, path),)}
            shape = replace(shape, properties=without)
        return shape

    def _excludes(self, written: Shape, other: Shape, depth: int) -> bool:
        """Returns whether no value that is written for one shape has the other one too."""
        self._effort.take()
        if written.values is not None:
            types = frozenset(map(type_of, written.values))
        else:
            types = written.emitted_types
        if other.types is not None and not common_types(types, other.types):
            return True
        if written.values is not None and other.values is not None:
            return not any(same(mine, each) for mine in written.values for each in other.values)
        if types != {"object"} or written.values is not None or other.values is not None:
            return (
                other.values is not None
                and common_types(types, frozenset(map(type_of, other.values))) == frozenset()
            )
        names = {
            name
            for name, schemas in written.properties.items()
            if all(schema.value is not False for schema in schemas)
        }
        if not written.writes_others and any(
            name not in names and name not in written.required for name in other.required
        ):
            return True
        for name in written.required:
            if name not in other.properties:
                limits = () if other.patterns_of_names else other.additional or ()
                if any(schema.value is False for schema in limits):
                    return True
                continue
            if depth and name in names:
                own = self.of_all(written.properties[name])
                their = self.of_all(other.properties[name])
                if all(self._excludes(a, b, depth - 1) for a in own for b in their):
                    return True
        return False

    def _products(self, first: list[Shape], second: list[Shape], path: str) -> list[Shape]:
        if len(first) * len(second) > _MOST_SHAPES:
            raise TooLargeError(f"it stands for more than {_MOST_SHAPES} alternatives", path)
        products = (self._product(a, b) for a in first for b in second)
        return [product for product in products if product is not None]

    def _product(self, first: Shape, second: Shape) -> Shape | None:
        """Returns the shape of what has both, or None if nothing has."""
        self._effort.take()
        types = second.types
        if first.types is not None:
            types = first.types if types is None else common_types(first.types, types)
        values = second.values
        if first.values is not None:
            values = first.values
            if second.values is not None:
                values = tuple(
                    each for each in values if any(same(each, other) for other in second.values)
                )
        if types == frozenset() or values == ():
            return None
        properties = dict(first.properties)
        for name in first.properties.keys() - second.properties.keys():
            properties[name] += second.additional or ()
        for name, schemas in second.properties.items():
            properties[name] = properties.get(name, first.additional or ()) + schemas
        # Names that one of two schemas has patterns for are others to the other one.
        others = [bool(each.patterns_of_names) for each in (first, second)]
        limits = [each.additional is not None for each in (first, second)]
        closed = first.closed or second.closed or all(others)
        closed = closed or (others[0] and limits[1]) or (others[1] and limits[0])
        additional = first.additional
        if second.additional is not None:
            additional = (additional or ()) + second.additional
        longer, shorter = sorted((first, second), key=lambda each: -len(each.prefix))
        prefix = tuple(
            each + (shorter.prefix[index] if index < len(shorter.prefix) else shorter.items)
            for index, each in enumerate(longer.prefix)
        )
        return Shape(
            first.path or second.path,
            types,
            values,
            max((each for each in (first.least, second.least) if each), default=None),
            min(
                (each for each in (first.most, second.most) if each),
                key=lambda bound: (bound[0], not bound[1]),
                default=None,
            ),
            first.multiples + second.multiples,
            max(first.least_length, second.least_length),
            _least(first.most_length, second.most_length),
            first.patterns + second.patterns,
            first.formats + second.formats,
            properties,
            tuple(dict.fromkeys(first.required + second.required)),
            first.patterns_of_names + second.patterns_of_names,
            additional,
            closed,
            max(first.least_members, second.least_members),
            _least(first.most_members, second.most_members),
            prefix,
            first.items + second.items,
            max(first.least_items, second.least_items),
            _least(first.most_items, second.most_items),
            first.unique or second.unique,
        )

    def _target(self, schema: Schema, reference: Any) -> Schema | None:
        """Returns the schema that a reference names, or None if it has named it too often."""
        path = f"{schema.path}/$ref"
        if not isinstance(reference, str):
            raise ConstraintError("a reference is no text", path)
        if not reference.startswith("#"):
            raise NoWayError(f"the reference {reference!r} leaves the schema", path)
        if schema.references.count(reference) > self._depth:
            return None
        value = self._root
        pointer = unquote(reference[1:])
        if pointer and not pointer.startswith("/"):
            raise NoWayError(f"the reference {reference!r} is not a path", path)
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                raise ConstraintError(f"the reference {reference!r} leads nowhere", path)
        return Schema(value, reference[1:], (*schema.references, reference))


def _least(first: int | None, second: int | None) -> int | None:
    return min((each for each in (first, second) if each is not None), default=None)
