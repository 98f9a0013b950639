"""JSON schemas without references and combinations: a schema becomes a list of shapes.

A value is valid if it has one of the shapes. `allOf`, and keywords beside `anyOf` or `$ref`, are
merged into each shape. `if` and `dependencies` become alternatives, and what `not` forbids becomes
the shapes of all other values. Whatever cannot be expressed so raises NoWayError with its path. A
reference that refers to itself is followed a limited number of times. After that no value is valid
by it, nor by its opposite.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from app.constraint.keywords import (
    Schema,
    Shape,
    higher,
    list_of,
    lower,
    object_of,
    plain_shape,
)
from app.constraint.limits import ConstraintError, Effort, NoWayError, TooLargeError
from app.constraint.negation import opposites
from app.constraint.values import common_types, same, type_of

_MOST_SHAPES = 300  # of one schema
_MOST_LEVELS = 60  # of combinations in combinations
_COMBINING = frozenset(
    {"$ref", "allOf", "anyOf", "oneOf", "not", "if"}
    | {"dependencies", "dependentRequired", "dependentSchemas"}
)


class Shapes:
    """Finds the shapes of the parts of one schema.

    Afterwards, if `are_narrow`, a value that is valid may have none of them.
    """

    def __init__(self, root: Any, depth: int, effort: Effort) -> None:
        self._root = root
        self._depth = depth
        self._effort = effort
        self._level = 0
        self.are_narrow = False
        # By the identities of values, which the schemas that are kept too hold alive.
        self._plain: dict[tuple[tuple[int, bool], ...], tuple[tuple[Schema, ...], list[Shape]]] = {}

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
        if schema.negated:
            return self._opposite(replace(schema, negated=False))
        shapes = [plain_shape(schema)]
        for alternatives in self._combinations(schema):
            shapes = self._products(shapes, alternatives, schema.path)
        if "oneOf" in value:
            shapes = self._one_of(schema, shapes)
        if value.get("unevaluatedProperties", True) is not True:
            path = f"{schema.path}/unevaluatedProperties"
            shapes = [self._evaluated(shape, path) for shape in shapes]
        return shapes

    def _combinations(self, schema: Schema) -> Iterator[list[Shape]]:
        """Yields the alternatives that each combining keyword stands for, but not `oneOf`."""
        value = schema.value
        if "$ref" in value:
            target = self._target(schema, value["$ref"])
            yield [] if target is None else self._of(target)
        for part in _parts(schema, "allOf"):
            yield self._of(part)
        if "anyOf" in value:
            yield [shape for part in _parts(schema, "anyOf") for shape in self._of(part)]
        if "not" in value:
            yield self._of(schema.inner(value["not"], "not").opposite)
        for condition, then, otherwise in _conditions(schema):
            yield [
                *self.of_all((condition, then)),
                *self.of_all((condition.opposite, otherwise)),
            ]
        for name, has_name, needed in _dependencies(schema):
            without = Shape(schema.path, properties={name: (Schema(False, schema.path),)})
            yield [without, *self.of_all((has_name, needed))]

    def _opposite(self, schema: Schema) -> list[Shape]:
        """Returns the shapes of the values that are not valid by a schema."""
        self.are_narrow = True
        value = schema.value
        if "$ref" in value:
            # Up to draft 7, other keywords beside a reference demand nothing.
            target = self._target(schema, value["$ref"])
            return [] if target is None else self._of(target.opposite)
        shapes = opposites(plain_shape(schema))
        for part in _parts(schema, "allOf"):
            shapes += self._of(part.opposite)
        if "anyOf" in value:
            shapes += self.of_all(part.opposite for part in _parts(schema, "anyOf"))
        if "oneOf" in value:
            parts = _parts(schema, "oneOf")
            shapes += self.of_all(part.opposite for part in parts)
            for both in combinations(parts, 2):
                shapes += self.of_all(both)
        if "not" in value:
            shapes += self._of(schema.inner(value["not"], "not"))
        for condition, then, otherwise in _conditions(schema):
            shapes += self.of_all((condition, then.opposite))
            shapes += self.of_all((condition.opposite, otherwise.opposite))
        for _, has_name, needed in _dependencies(schema):
            shapes += self.of_all((has_name, needed.opposite))
        if value.get("unevaluatedProperties", True) is not True:
            path = f"{schema.path}/unevaluatedProperties"
            raise NoWayError("not with unevaluatedProperties is not supported", path)
        return shapes

    def _evaluated(self, shape: Shape, path: str) -> Shape:
        """Returns the shape without the members that `unevaluatedProperties` limits."""
        if shape.additional is not None:
            return shape
        if shape.opposed:
            raise NoWayError("members of an opposite may not be evaluated", path)
        if not shape.properties.keys() >= set(shape.required):
            raise NoWayError("a member is required that properties do not name", path)
        return replace(shape, closed=shape.closed or not shape.patterns_of_names)

    def _one_of(self, schema: Schema, shapes: list[Shape]) -> list[Shape]:
        """Returns the shapes merged with those of `oneOf`, so that no value has two of them."""
        path = f"{schema.path}/oneOf"
        parts = _parts(schema, "oneOf")
        branches = [self._of(part) for part in parts]
        exclusive = []
        for index, branch in enumerate(branches):
            own = self._products(shapes, branch, path)
            for number, other in enumerate(branches):
                if number == index:
                    continue
                apart = [all(self._excludes(mine, each, 3) for each in other) for mine in own]
                near = [mine for mine, is_apart in zip(own, apart, strict=True) if not is_apart]
                own = [mine for mine, is_apart in zip(own, apart, strict=True) if is_apart]
                if near:
                    own += self._products(near, self._opposite_branch(parts[number]), path)
            exclusive += own
        return exclusive

    def _opposite_branch(self, branch: Schema) -> list[Shape]:
        try:
            return self._of(branch.opposite)
        except TooLargeError:
            raise
        except NoWayError:
            fault = "a value may be valid by two alternatives of oneOf"
            raise NoWayError(fault, branch.path.rpartition("/")[0]) from None

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
        excluded = first.excluded + second.excluded
        values = second.values if first.values is None else first.values
        if values is not None:
            values = tuple(
                each
                for each in values
                if second.values is None or any(same(each, other) for other in second.values)
                if not any(same(each, other) for other in excluded)
            )
        if types == frozenset() or values == ():
            return None
        properties = self._common_properties(first, second)
        required = tuple(dict.fromkeys(first.required + second.required))
        written = types in (None, {"object"})
        if written and any(
            schema.value is False for name in required for schema in properties.get(name, ())
        ):
            self.are_narrow |= types is None  # what is no object is valid
            return None
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
            higher(first.least, second.least),
            lower(first.most, second.most),
            first.multiples + second.multiples,
            max(first.least_length, second.least_length),
            _least(first.most_length, second.most_length),
            first.patterns + second.patterns,
            first.formats + second.formats,
            properties,
            required,
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
            excluded,
            first.excluded_patterns + second.excluded_patterns,
            first.names + second.names,
            first.contained + second.contained,
            first.others_than + second.others_than,
            first.opposed or second.opposed,
        )

    def _common_properties(self, first: Shape, second: Shape) -> dict[str, tuple[Schema, ...]]:
        """Returns the properties of both. Those that no value fulfils plainly are false."""
        properties = dict(first.properties)
        for name in first.properties.keys() - second.properties.keys():
            properties[name] += second.additional or ()
        for name, schemas in second.properties.items():
            both = properties.get(name, first.additional or ()) + schemas
            if len(both) > len(schemas) and _is_plain(both) and not self._plain_shapes(both):
                both = (Schema(False, schemas[0].path),)
            properties[name] = both
        return properties

    def _plain_shapes(self, schemas: tuple[Schema, ...]) -> list[Shape]:
        """Returns the shapes of values that are valid by each of some plain schemas.

        They are kept, because such lists grow by one schema at a time.
        """
        key = tuple((id(schema.value), schema.negated) for schema in schemas)
        if key not in self._plain:
            shapes = self._of(schemas[-1])
            if len(schemas) > 1:
                before = self._plain_shapes(schemas[:-1])
                shapes = self._products(before, shapes, schemas[-1].path)
            self._plain[key] = (schemas, shapes)
        return self._plain[key][1]

    def _target(self, schema: Schema, reference: Any) -> Schema | None:
        """Returns the schema that a reference names, or None if it has named it too often."""
        path = f"{schema.path}/$ref"
        if not isinstance(reference, str):
            raise ConstraintError("a reference is no text", path)
        if not reference.startswith("#"):
            raise NoWayError(f"the reference {reference!r} leaves the schema", path)
        followed = schema.references.count(reference)
        self._effort.deepest_reference = max(self._effort.deepest_reference, followed)
        if followed > self._depth:
            self.are_narrow = True
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


def _parts(schema: Schema, keyword: str) -> list[Schema]:
    return [
        schema.inner(each, keyword, index) for index, each in enumerate(list_of(schema, keyword))
    ]


def _conditions(schema: Schema) -> Iterator[tuple[Schema, Schema, Schema]]:
    """Yields the condition, what it demands, and what its opposite does, if there is one."""
    value = schema.value
    if "if" in value and ("then" in value or "else" in value):
        condition, then, otherwise = (
            schema.inner(value.get(keyword, True), keyword) for keyword in ("if", "then", "else")
        )
        yield condition, then, otherwise


def _dependencies(schema: Schema) -> Iterator[tuple[str, Schema, Schema]]:
    """Yields names, with a schema for the objects that have each, and what is then demanded."""
    for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
        for name, needed in object_of(schema, keyword).items():
            needed = {"required": needed} if isinstance(needed, list) else needed
            has_name = schema.inner({"type": "object", "required": [name]}, keyword, name)
            yield name, has_name, schema.inner(needed, keyword, name)


def _is_plain(schemas: Sequence[Schema]) -> bool:
    """Returns whether one of the schemas lists values, and none of them has combinations."""
    values = [schema.value for schema in schemas]
    return all(
        isinstance(value, bool) or (isinstance(value, dict) and _COMBINING.isdisjoint(value))
        for value in values
    ) and any(
        isinstance(value, bool) or not {"const", "enum"}.isdisjoint(value) for value in values
    )


def _least(first: int | None, second: int | None) -> int | None:
    return min((each for each in (first, second) if each is not None), default=None)
