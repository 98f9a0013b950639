"""JSON values: their types, and which of them are equal."""

from typing import Any

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


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
    own = type_of(value)
    return types is None or own in types or (own == "integer" and "number" in types)


def common_types(first: frozenset[str], second: frozenset[str]) -> frozenset[str]:
    """Returns the types that are in both. An integer is a number too."""
    both = first & second
    for one, other in ((first, second), (second, first)):
        if "integer" in one and "number" in other:
            both |= {"integer"}
    return both - {"integer"} if "number" in both else both
