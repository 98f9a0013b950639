"""`oneOf` rewritten as `anyOf`, for grammars, which know only `anyOf`.

A `oneOf` is rewritten only if it is proved that no value is valid by two of its alternatives, for
all values and not only for those that an automaton writes. So the same values are valid by the new
schema.
"""

from dataclasses import replace
from itertools import combinations
from typing import Any

from app.constraint.keywords import Schema, list_of
from app.constraint.limits import ConstraintError, Effort, LateError
from app.constraint.shapes import Shapes

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
            shapes.found((common, schema.inner(part, "oneOf", index)))
            for index, part in enumerate(list_of(schema, "oneOf"))
        ]
        return all(are_all for _, are_all in alternatives) and all(
            shapes.exclude(first, second)
            for (first, _), (second, _) in combinations(alternatives, 2)
        )
    except LateError:
        raise
    except ConstraintError:
        return False
