"""The keywords of one part of a JSON schema, as the shape of the values that they allow.

Combinations of several parts are merged in `shapes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from app.constraint.limits import ConstraintError, NoWayError
from app.constraint.values import TYPES, has_type, same, type_of

_REFUSED = frozenset(
    {"unevaluatedItems", "$dynamicRef", "$recursiveRef", "minContains", "maxContains"}
)

Bound = tuple[Decimal, bool]  # with True, the bound itself is excluded


@dataclass(frozen=True)
class Schema:
    """A part of a schema, where it stands, and the references through which it was reached.

    If it is `negated`, a value is valid by it if it is not valid by the part.
    """

    value: Any
    path: str
    references: tuple[str, ...] = ()
    negated: bool = False

    @property
    def is_open(self) -> bool:
        """Returns whether it is plain that every value is valid."""
        return not self.negated and (self.value is True or self.value == {})

    @property
    def opposite(self) -> "Schema":
        """Returns the schema of all values that are not valid by this one."""
        if isinstance(self.value, bool):
            return replace(self, value=not self.value)
        return replace(self, negated=not self.negated)

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
    least: Bound | None = None
    most: Bound | None = None
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
    excluded: tuple[Any, ...] = ()  # the value is none of these
    excluded_patterns: tuple[str, ...] = ()
    names: tuple[Schema, ...] = ()  # by which the name of each member is valid
    contained: tuple[Schema, ...] = ()  # by each of which one item is valid
    # There is a member that is neither one of the names nor matched by one of the patterns.
    others_than: tuple[tuple[frozenset[str], tuple[str, ...]], ...] = ()
    opposed: bool = False  # some members are spoken of only because a part is not valid

    @property
    def lists_members(self) -> bool:
        """Returns whether it names members that may be there."""
        return bool(self.required) or any(map(self.lists, self.properties))

    def lists(self, name: str) -> bool:
        """Returns whether it names this member, which may be there."""
        if name in self.properties:
            return all(schema.value is not False for schema in self.properties[name])
        return name in self.required

    @property
    def may_evaluate(self) -> bool:
        """Returns whether members are valid by a part of it that says something about them."""
        return (
            self.additional is not None
            or bool(self.patterns_of_names)
            or any(map(self.lists, self.properties))
        )

    @property
    def possible_types(self) -> frozenset[str]:
        """Returns the types of its values."""
        if self.values is not None:
            return frozenset(map(type_of, self.typed_values))
        return frozenset(TYPES) if self.types is None else self.types

    @property
    def typed_values(self) -> list[Any]:
        """Returns those of its listed values that have one of its types."""
        return [each for each in self.values or () if has_type(each, self.types)]

    def may_be(self, value: Any) -> bool:
        """Returns whether a value is none of the excluded ones."""
        return not any(same(value, each) for each in self.excluded)

    @property
    def emitted_types(self) -> frozenset[str]:
        """Returns the types that are written. If none are named, the other keywords tell."""
        if self.types is not None:
            return self.types
        if self.properties or self.required or self.additional is not None or self.closed:
            return frozenset(("object",))
        if self.patterns_of_names or self.least_members or self.most_members is not None:
            return frozenset(("object",))
        if self.names or self.others_than:
            return frozenset(("object",))
        if self.items or self.prefix or self.least_items or self.most_items is not None:
            return frozenset(("array",))
        if self.unique or self.contained:
            return frozenset(("array",))
        if self.patterns or self.formats or self.least_length or self.most_length is not None:
            return frozenset(("string",))
        if self.excluded_patterns:
            return frozenset(("string",))
        if self.least or self.most or self.multiples:
            return frozenset(("number",))
        return frozenset(TYPES) - {"integer"}

    @property
    def writes_others(self) -> bool:
        """Returns whether members that are not listed are written."""
        if self.closed:
            return False
        if self.additional is None:
            return bool(self.patterns_of_names) or not self.lists_members
        forbidden = any(schema.value is False for schema in self.additional)
        return bool(self.patterns_of_names) or not forbidden


def plain_shape(schema: Schema) -> Shape:
    """Returns the shape of the keywords that are no combinations."""
    value = schema.value
    for keyword in value.keys() & _REFUSED:
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
        values = tuple(list_of(schema, "enum"))
    if "const" in value:
        kept = values is None or any(same(value["const"], each) for each in values)
        values = (value["const"],) if kept else ()
    least, most = _bounds(schema)
    multiples = _number(schema, "multipleOf")
    properties = {
        name: (schema.inner(each, "properties", name),)
        for name, each in object_of(schema, "properties").items()
    }
    additional = _part(schema, "additionalProperties") or None
    prefix, items = _items(schema)
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
            for name, each in object_of(schema, "patternProperties").items()
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
        names=_part(schema, "propertyNames"),
        contained=_part(schema, "contains"),
    )


def _items(schema: Schema) -> tuple[tuple[tuple[Schema, ...], ...], tuple[Schema, ...]]:
    value = schema.value
    keyword, more = "prefixItems", "items"
    if isinstance(value.get("items"), list):
        keyword, more = "items", "additionalItems"
    prefix = tuple(
        (schema.inner(each, keyword, index),)
        for index, each in enumerate(list_of(schema, keyword) if keyword in value else [])
    )
    return prefix, _part(schema, more)


def _bounds(
    schema: Schema,
) -> tuple[Bound | None, Bound | None]:
    value = schema.value
    bounds: list[Bound | None] = []
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


def higher(first: Bound | None, second: Bound | None) -> Bound | None:
    """Returns the stricter of two lower bounds."""
    return max((each for each in (first, second) if each), default=None)


def lower(first: Bound | None, second: Bound | None) -> Bound | None:
    """Returns the stricter of two upper bounds."""
    bounds = (each for each in (first, second) if each)
    return min(bounds, key=lambda bound: (bound[0], not bound[1]), default=None)


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


def list_of(schema: Schema, keyword: str) -> list[Any]:
    value = schema.value.get(keyword, [])
    if not isinstance(value, list):
        raise ConstraintError(f"{keyword} is not a list", f"{schema.path}/{keyword}")
    return value


def _part(schema: Schema, keyword: str) -> tuple[Schema, ...]:
    return (schema.inner(schema.value[keyword], keyword),) if keyword in schema.value else ()


def object_of(schema: Schema, keyword: str) -> dict[str, Any]:
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
    names = list_of(schema, "required")
    if not all(isinstance(name, str) for name in names):
        raise ConstraintError("required is not a list of names", f"{schema.path}/required")
    return tuple(names)
