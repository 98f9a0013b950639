"""JSON schemas without references and combinations: a schema becomes a list of shapes.

A value is valid if it has one of the shapes. `allOf`, and keywords beside `anyOf` or `$ref`, are
merged into each shape. Whatever cannot be expressed so raises NoWayError with its path. A reference
that refers to itself is followed a limited number of times, and stands for nothing after that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from app.constraint.limits import ConstraintError, Effort, NoWayError, TooLargeError

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_MOST_SHAPES = 300  # of one schema
_MOST_LEVELS = 60  # of combinations in combinations

_REFUSED = frozenset(
    {"not", "if", "contains", "dependencies", "dependentRequired", "dependentSchemas"}
    | {"propertyNames", "unevaluatedItems", "$dynamicRef", "$recursiveRef"}
)


@dataclass(frozen=True)
class Schema:
    """A part of a schema, where it stands, and the references through which it was reached."""

    value: Any
    path: str
    references: tuple[str, ...] = ()

    def inner(self, value: Any, *keys: str | int) -> "Schema":
        """Returns a part of this part."""
        path = "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in keys)
        return Schema(value, self.path + path, self.references)


@dataclass(frozen=True)
class Shape:
    """What a value must fulfil. Fields that are None or empty demand nothing."""

    path: str
    types: frozenset[str] | None = None
    values: tuple[Any, ...] | None = None  # the only values, if there are only some
    least: tuple[Decimal, bool] | None = None  # with True, the bound itself is excluded
    most: tuple[Decimal, bool] | None = None
    multiples: tuple[Decimal, ...] = ()
    least_length: int = 0
    most_length: int | None = None
    patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    properties: Mapping[str, tuple[Schema, ...]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    patterns_of_names: tuple[tuple[str, Schema], ...] = ()
    additional: tuple[Schema, ...] | None = None  # None: nothing is said about other members
    closed: bool = False  # members that are not listed are not written
    least_members: int = 0
    most_members: int | None = None
    prefix: tuple[tuple[Schema, ...], ...] = ()
    items: tuple[Schema, ...] = ()
    least_items: int = 0
    most_items: int | None = None
    unique: bool = False

    @property
    def emitted_types(self) -> frozenset[str]:
        """Returns the types that are written. If none are named, the other keywords tell."""
        if self.types is not None:
            return self.types
        if self.properties or self.required or self.additional is not None or self.closed:
            return frozenset(("object",))
        if self.patterns_of_names or self.least_members or self.most_members is not None:
            return frozenset(("object",))
        if self.items or self.prefix or self.least_items or self.most_items is not None:
            return frozenset(("array",))
        if self.patterns or self.formats or self.least_length or self.most_length is not None:
            return frozenset(("string",))
        if self.least or self.most or self.multiples:
            return frozenset(("number",))
        return frozenset(TYPES)

    @property
    def writes_others(self) -> bool:
        """Returns whether members that are not listed are written."""
        if self.closed:
            return False
        if self.additional is None:
            return bool(self.patterns_of_names) or not (self.properties or self.required)
        forbidden = any(schema.value is False for schema in self.additional)
        return bool(self.patterns_of_names) or not forbidden


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
        shapes = [self._plain(schema)]
        if "$ref" in value:
            target = self._target(schema, value["$ref"])
            shapes = self._products(shapes, [] if target is None else self._of(target), schema.path)
        for index, each in enumerate(_list(schema, "allOf")):
            own = self._of(schema.inner(each, "allOf", index))
            shapes = self._products(shapes, own, schema.path)
        if "anyOf" in value:
            branches = [
                shape
                for index, each in enumerate(_list(schema, "anyOf"))
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
            for index, each in enumerate(_list(schema, "oneOf"))
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
        if other.types is not None and not _common_types(types, other.types):
            return True
        if written.values is not None and other.values is not None:
            return not any(same(mine, each) for mine in written.values for each in other.values)
        if types != {"object"} or written.values is not None or other.values is not None:
            return (
                other.values is not None
                and _common_types(types, frozenset(map(type_of, other.values))) == frozenset()
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
            types = first.types if types is None else _common_types(first.types, types)
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

    def _plain(self, schema: Schema) -> Shape:
        """Returns the shape of the keywords that are no combinations."""
        value = schema.value
        for keyword in value.keys() & _REFUSED:
            if keyword != "if" or "then" in value or "else" in value:
                raise NoWayError(f"{keyword} is not supported", f"{schema.path}/{keyword}")
        if schema.path and isinstance(value.get("$id"), str) and value["$id"][:1] != "#":
            raise NoWayError("a part with an $id of its own is not supported", schema.path)
        types = None
        if "type" in value:
            names = value["type"] if isinstance(value["type"], list) else [value["type"]]
            if not all(name in TYPES for name in names):
                raise ConstraintError(f"{value['type']!r} is no type", f"{schema.path}/type")
            types = frozenset(names)
            if "number" in types:
                types -= {"integer"}
        values = None
        if "enum" in value:
            values = tuple(_list(schema, "enum"))
        if "const" in value:
            kept = values is None or any(same(value["const"], each) for each in values)
            values = (value["const"],) if kept else ()
        least, most = _bounds(schema)
        multiples = _number(schema, "multipleOf")
        properties = {
            name: (schema.inner(each, "properties", name),)
            for name, each in _object(schema, "properties").items()
        }
        additional = None
        if "additionalProperties" in value:
            additional = (schema.inner(value["additionalProperties"], "additionalProperties"),)
        prefix, items = self._items(schema)
        return Shape(
            schema.path,
            types,
            values,
            least,
            most,
            () if multiples is None else (multiples,),
            _count(schema, "minLength") or 0,
            _count(schema, "maxLength"),
            _texts(schema, "pattern"),
            _texts(schema, "format"),
            properties,
            _required(schema),
            tuple(
                (name, schema.inner(each, "patternProperties", name))
                for name, each in _object(schema, "patternProperties").items()
            ),
            additional,
            False,
            _count(schema, "minProperties") or 0,
            _count(schema, "maxProperties"),
            prefix,
            items,
            _count(schema, "minItems") or 0,
            _count(schema, "maxItems"),
            value.get("uniqueItems") is True,
        )

    def _items(self, schema: Schema) -> tuple[tuple[tuple[Schema, ...], ...], tuple[Schema, ...]]:
        value = schema.value
        keyword, more = "prefixItems", "items"
        if isinstance(value.get("items"), list):
            keyword, more = "items", "additionalItems"
        prefix = tuple(
            (schema.inner(each, keyword, index),)
            for index, each in enumerate(_list(schema, keyword) if keyword in value else [])
        )
        return prefix, (schema.inner(value[more], more),) if more in value else ()

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


def type_of(value: Any) -> str:
    """Returns the type of a JSON value. A number without a fraction is an integer."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def same(first: Any, second: Any) -> bool:
    """Returns whether two JSON values are equal. True is not 1."""
    match first, second:
        case list(), list():
            return len(first) == len(second) and all(map(same, first, second))
        case dict(), dict():
            return first.keys() == second.keys() and all(
                same(value, second[name]) for name, value in first.items()
            )
        case _:
            return bool(first == second) and type_of(first) == type_of(second)


def has_type(value: Any, types: frozenset[str] | None) -> bool:
    """Returns whether a value has one of the types."""
    return types is None or bool(_common_types(frozenset((type_of(value),)), types))


def _common_types(first: frozenset[str], second: frozenset[str]) -> frozenset[str]:
    both = first & second
    for one, other in ((first, second), (second, first)):
        if "integer" in one and "number" in other:
            both |= {"integer"}
    return both - {"integer"} if "number" in both else both


def _least(first: int | None, second: int | None) -> int | None:
    return min((each for each in (first, second) if each is not None), default=None)


def _bounds(
    schema: Schema,
) -> tuple[tuple[Decimal, bool] | None, tuple[Decimal, bool] | None]:
    value = schema.value
    bounds: list[tuple[Decimal, bool] | None] = []
    for keyword, exclusive, sign in (
        ("minimum", "exclusiveMinimum", 1),
        ("maximum", "exclusiveMaximum", -1),
    ):
        found = []
        bound = _number(schema, keyword)
        if bound is not None:
            found.append((bound, value.get(exclusive) is True))  # draft 4 has true here
        if not isinstance(value.get(exclusive), bool):
            excluded = _number(schema, exclusive)
            if excluded is not None:
                found.append((excluded, True))
        bounds.append(max(found, key=lambda each: (sign * each[0], each[1]), default=None))
    return bounds[0], bounds[1]


def _number(schema: Schema, keyword: str) -> Decimal | None:
    number = schema.value.get(keyword)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ConstraintError(f"{keyword} is not a number", f"{schema.path}/{keyword}")
    return Decimal(str(number))


def _count(schema: Schema, keyword: str) -> int | None:
    number = _number(schema, keyword)
    if number is None:
        return None
    if number < 0 or number != int(number):
        raise ConstraintError(f"{keyword} is not a count", f"{schema.path}/{keyword}")
    return int(number)


def _list(schema: Schema, keyword: str) -> list[Any]:
    value = schema.value.get(keyword, [])
    if not isinstance(value, list):
        raise ConstraintError(f"{keyword} is not a list", f"{schema.path}/{keyword}")
    return value


def _object(schema: Schema, keyword: str) -> dict[str, Any]:
    value = schema.value.get(keyword, {})
    if not isinstance(value, dict):
        raise ConstraintError(f"{keyword} is not an object", f"{schema.path}/{keyword}")
    return value


def _texts(schema: Schema, keyword: str) -> tuple[str, ...]:
    value = schema.value.get(keyword)
    if value is None:
        return ()
    if not isinstance(value, str):
        raise ConstraintError(f"{keyword} is not a text", f"{schema.path}/{keyword}")
    return (value,)


def _required(schema: Schema) -> tuple[str, ...]:
    value = schema.value.get("required", ())
    if isinstance(value, bool):  # draft 3, which has it in the property
        raise NoWayError("required is not a list", f"{schema.path}/required")
    names = _list(schema, "required")
    if not all(isinstance(name, str) for name in names):
        raise ConstraintError("required is not a list of names", f"{schema.path}/required")
    return tuple(names)
