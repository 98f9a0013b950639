"""`oneOf` rewritten as `anyOf`, for grammars, which know only `anyOf`.

A `oneOf` is rewritten only if it is proved that no value is valid by two of its alternatives, for
all values and not only for those that an automaton writes. So the same values are valid by the new
schema.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations, product
from typing import Any

from app.constraint.keywords import Schema, Shape, list_of
from app.constraint.limits import ConstraintError, Effort, LateError
from app.constraint.shapes import Shapes
from app.constraint.values import TYPES, common_types, has_type, same, type_of

# The keywords whose value is a part, a list of parts, or an object whose values are parts.
_PARTS = frozenset(
    {"items", "additionalItems", "contains", "unevaluatedItems", "additionalProperties"}
    | {"unevaluatedProperties", "propertyNames", "not", "if", "then", "else"}
)
_LISTS = frozenset({"items", "prefixItems", "allOf", "anyOf", "oneOf"})
_OBJECTS = frozenset(
    {"properties", "patternProperties", "definitions", "$defs", "dependencies", "dependentSchemas"}
)
_MOST_REFERENCES = 6  # of a reference to itself
_MOST_MEMBERS = 3  # in members, in which two alternatives are compared


def with_any_of(root: Any, effort: Effort) -> Any:
    """Returns the schema with `anyOf` for each `oneOf` whose alternatives exclude each other.

    A `oneOf` stays if this is not proved. Raises LateError if the proofs take too long.
    """
    try:
        return _rewritten(Schema(root, ""), root, effort)
    except RecursionError:
        return root


def _rewritten(schema: Schema, root: Any, effort: Effort) -> Any:
    value = schema.value
    if not isinstance(value, dict):
        return value
    result: dict[str, Any] = {}
    for keyword, each in value.items():
        if isinstance(each, dict) and keyword in _PARTS:
            result[keyword] = _rewritten(schema.inner(each, keyword), root, effort)
        elif isinstance(each, list) and keyword in _LISTS:
            parts = [schema.inner(part, keyword, index) for index, part in enumerate(each)]
            result[keyword] = [_rewritten(part, root, effort) for part in parts]
        elif isinstance(each, dict) and keyword in _OBJECTS:
            inner = {name: schema.inner(part, keyword, name) for name, part in each.items()}
            result[keyword] = {name: _rewritten(part, root, effort) for name, part in inner.items()}
        else:
            result[keyword] = each
    if "oneOf" in value and _is_exclusive(schema, root, effort):
        either = {"anyOf": result.pop("oneOf")}
        if "anyOf" in result:
            result["allOf"] = [*result.get("allOf", ()), either]
        else:
            result |= either
    return result


def _is_exclusive(schema: Schema, root: Any, effort: Effort) -> bool:
    """Returns whether it is proved that no value is valid by two alternatives of `oneOf`."""
    shapes = Shapes(root, _MOST_REFERENCES, effort)
    common = replace(
        schema, value={name: each for name, each in schema.value.items() if name != "oneOf"}
    )
    try:
        alternatives = [
            shapes.of_all((common, schema.inner(part, "oneOf", index)))
            for index, part in enumerate(list_of(schema, "oneOf"))
        ]
        exclusive = all(
            _exclude(first, second, shapes, effort, _MOST_MEMBERS)
            for first, second in combinations(alternatives, 2)
        )
    except LateError:
        raise
    except ConstraintError:
        return False
    return exclusive and not shapes.are_narrow


def _exclude(
    first: Iterable[Shape], second: Iterable[Shape], shapes: Shapes, effort: Effort, depth: int
) -> bool:
    """Returns whether no value has one of the first shapes and one of the second ones."""
    for one, other in product(first, second):
        effort.take()
        if _excludes(one, other):
            continue
        both_may_be = common_types(_types(one), _types(other))
        if depth == 0 or both_may_be != {"object"} or one.patterns_of_names:
            return False
        if other.patterns_of_names or not (
            _demands_another(one, other, shapes, effort, depth)
            or _demands_another(other, one, shapes, effort, depth)
        ):
            return False
    return True


def _excludes(one: Shape, other: Shape) -> bool:
    """Returns whether the types or the listed values of two shapes exclude each other."""
    if not common_types(_types(one), _types(other)):
        return True
    if one.values is None or other.values is None:
        return False
    return not any(same(mine, each) for mine in _values(one) for each in _values(other))


def _demands_another(one: Shape, other: Shape, shapes: Shapes, effort: Effort, depth: int) -> bool:
    """Returns whether a member that one shape demands is never valid by the other one."""
    for name in one.required:
        if name in other.properties:
            own = shapes.of_all(one.properties.get(name, ()))
            their = shapes.of_all(other.properties[name])
            if _exclude(own, their, shapes, effort, depth - 1):
                return True
        elif any(schema.value is False for schema in other.additional or ()):
            return True
    return False


def _types(shape: Shape) -> frozenset[str]:
    if shape.values is not None:
        return frozenset(map(type_of, _values(shape)))
    return frozenset(TYPES) if shape.types is None else shape.types


def _values(shape: Shape) -> list[Any]:
    return [each for each in shape.values or () if has_type(each, shape.types)]
