"""Instances of a schema, changed as a closed world wants them: keys in order, and none unlisted."""

from collections.abc import Iterator
from typing import Any

_MOST_LEVELS = 30  # of references and combinations


def in_order(data: Any, schema: Any) -> Any:
    """Returns the data with the members of each object in the order of the schema.

    Those that the schema does not list follow in the order that they have.
    """
    return _changed(data, [schema], schema, drop=False)


def listed_only(data: Any, schema: Any) -> Any:
    """Returns the data in order, and without members that the schema does not list.

    They are kept where the schema lists none.
    """
    return _changed(data, [schema], schema, drop=True)


def _changed(data: Any, schemas: list[Any], root: Any, *, drop: bool) -> Any:
    parts = [part for schema in schemas for part in _parts(schema, root, _MOST_LEVELS)]
    if isinstance(data, list):
        return [
            _changed(item, _of_item(parts, index), root, drop=drop)
            for index, item in enumerate(data)
        ]
    if not isinstance(data, dict):
        return data
    order: dict[str, list[Any]] = {}
    for part in parts:
        for name, schema in _object(part, "properties").items():
            order.setdefault(name, []).append(schema)
    others = [
        schema
        for part in parts
        for schema in (
            part.get("additionalProperties"),
            *_object(part, "patternProperties").values(),
        )
        if isinstance(schema, dict)
    ]
    required = {str(name) for part in parts for name in part.get("required", ()) or ()}
    names = [name for name in order if name in data]
    if not (drop and order and not others):
        names += [name for name in data if name not in order]
    else:
        names += [name for name in data if name not in order and name in required]
    return {name: _changed(data[name], order.get(name, others), root, drop=drop) for name in names}


def _of_item(parts: list[dict[str, Any]], index: int) -> list[Any]:
    schemas = []
    for part in parts:
        items, prefix = part.get("items"), part.get("prefixItems")
        if isinstance(items, list):
            items, prefix = part.get("additionalItems"), items
        at = prefix[index] if isinstance(prefix, list) and index < len(prefix) else items
        schemas += [at] if isinstance(at, dict) else []
    return schemas


def _parts(schema: Any, root: Any, levels: int) -> Iterator[dict[str, Any]]:
    """Yields the schemas that speak of the same value, in the order in which they are merged."""
    if not isinstance(schema, dict) or levels == 0:
        return
    yield schema
    inner = [_target(schema["$ref"], root)] if isinstance(schema.get("$ref"), str) else []
    for keyword in ("allOf", "anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            inner += schema[keyword]
    inner += [schema.get(keyword) for keyword in ("if", "then", "else")]
    for keyword in ("dependencies", "dependentSchemas"):
        inner += _object(schema, keyword).values()
    for each in inner:
        yield from _parts(each, root, levels - 1)


def _target(reference: str, root: Any) -> Any:
    value = root
    for part in reference.removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def _object(part: dict[str, Any], keyword: str) -> dict[str, Any]:
    value = part.get(keyword)
    return value if isinstance(value, dict) else {}
