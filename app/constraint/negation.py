"""The opposite of a shape: the shapes of the values that do not have it.

What has an opposite shape never has the shape itself. The opposite may be narrow: the opposite of
integers has no numbers, and that of `patternProperties` beside `additionalProperties: false` has
only other members. A keyword that has no opposite raises NoWayError.
"""

from collections.abc import Iterator
from typing import Any

from app.constraint.keywords import Schema, Shape
from app.constraint.limits import NoWayError
from app.constraint.values import TYPES, has_type

_OBJECT, _ARRAY = frozenset(("object",)), frozenset(("array",))
_STRING, _NUMBER = frozenset(("string",)), frozenset(("number",))


def opposites(shape: Shape) -> list[Shape]:
    """Returns shapes, none of whose values has this shape.

    Raises NoWayError with the path of a keyword that has no opposite.
    """
    _check(shape)
    return [
        *_of_kinds(shape),
        *_of_numbers_and_strings(shape),
        *_of_arrays(shape),
        *_of_objects(shape),
    ]


def are_all_opposites(shape: Shape) -> bool:
    """Returns whether each value without this shape has one of its `opposites`."""
    has_integers = shape.values is None and "integer" in (shape.types or ())
    return not has_integers and not shape.patterns_of_names


def _check(shape: Shape) -> None:
    unsupported: dict[str, Any] = {
        "multipleOf": shape.multiples,
        "format": shape.formats,
        "prefixItems": shape.prefix,
        "uniqueItems": shape.unique,
        "propertyNames": shape.names,
    }
    limits = [each.value for each in shape.additional or () if not each.is_open]
    if limits != [False]:
        unsupported |= {
            "patternProperties": shape.patterns_of_names,
            "additionalProperties": limits,
        }
    for keyword, value in unsupported.items():
        if value:
            raise NoWayError(f"not with {keyword} is not supported", f"{shape.path}/{keyword}")
    if len(shape.contained) > 1 or (shape.items and shape.contained):
        raise NoWayError("not with contains is not supported here", f"{shape.path}/contains")


def _of_kinds(shape: Shape) -> Iterator[Shape]:
    if shape.values is not None:
        values = tuple(each for each in shape.values if has_type(each, shape.types))
        yield Shape(shape.path, excluded=values)
    elif shape.types is not None:
        others = frozenset(TYPES) - shape.types - {"integer"}
        if "integer" in shape.types:
            others -= {"number"}  # no shape is that of the numbers with a fraction
        if others:
            yield Shape(shape.path, others)


def _of_numbers_and_strings(shape: Shape) -> Iterator[Shape]:
    path = shape.path
    if shape.least is not None:
        bound, excluded = shape.least
        yield Shape(path, _NUMBER, most=(bound, not excluded))
    if shape.most is not None:
        bound, excluded = shape.most
        yield Shape(path, _NUMBER, least=(bound, not excluded))
    if shape.least_length > 0:
        yield Shape(path, _STRING, most_length=shape.least_length - 1)
    if shape.most_length is not None:
        yield Shape(path, _STRING, least_length=shape.most_length + 1)
    for pattern in shape.patterns:
        yield Shape(path, _STRING, excluded_patterns=(pattern,))
    for pattern in shape.excluded_patterns:
        yield Shape(path, _STRING, patterns=(pattern,))


def _of_arrays(shape: Shape) -> Iterator[Shape]:
    path = shape.path
    if shape.least_items > 0:
        yield Shape(path, _ARRAY, most_items=shape.least_items - 1)
    if shape.most_items is not None:
        yield Shape(path, _ARRAY, least_items=shape.most_items + 1)
    for schema in shape.items:
        if not schema.is_open:
            yield Shape(path, _ARRAY, contained=(schema.opposite,))
    for schema in shape.contained:
        yield Shape(path, _ARRAY, items=(schema.opposite,))


def _of_objects(shape: Shape) -> Iterator[Shape]:
    path = shape.path
    for name, schemas in shape.properties.items():
        for schema in schemas:
            if not schema.is_open:
                own = {name: (schema.opposite,)}
                yield Shape(path, _OBJECT, properties=own, required=(name,))
    for name in shape.required:
        yield Shape(path, _OBJECT, properties={name: (Schema(False, path),)})
    if shape.additional and not shape.additional[0].is_open:
        patterns = tuple(pattern for pattern, _ in shape.patterns_of_names)
        yield Shape(path, _OBJECT, others_than=((frozenset(shape.properties), patterns),))
    if shape.least_members > 0:
        yield Shape(path, _OBJECT, most_members=shape.least_members - 1)
    if shape.most_members is not None:
        yield Shape(path, _OBJECT, least_members=shape.most_members + 1)
