"""A tool's JSON schema in the few words that Gemma's chat templates can show.

Gemma knows `type`, `description`, `enum`, `items`, `properties`, `required` and `nullable`, and one
type for each schema. Clients send all of JSON Schema, and more. This file looks references up,
merges alternatives, turns null into `nullable`, and gives every schema exactly one type. What a
template would not show is said in the description. The result is only shown to the model: calls are
checked against the schema as it came.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

MOST_NODES = 5_000  # schemas of one tool, once references are looked up
MOST_ENTRIES = 500_000  # entries of the objects and lists that a request's schemas are made of
MOST_CHARACTERS = 4 * 2**20  # of all texts in a request's schemas
_TYPES = ("string", "number", "integer", "boolean", "array", "object")
_OTHER_NAMES = {
    "str": "string",
    "text": "string",
    "int": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "dict": "object",
    "map": "object",
}
_ALTERNATIVES = ("anyOf", "oneOf")


class SchemaTooLargeError(ValueError):
    """With its references looked up, the schema is larger than a prompt should have it."""


class SchemaRoom:
    """How much the schemas of one request may still stand for.

    Whatever is copied from one schema to another is counted before it is copied. So neither time
    nor memory can grow faster than these numbers, however often a schema refers to itself.
    """

    def __init__(self) -> None:
        self._entries = MOST_ENTRIES
        self._characters = MOST_CHARACTERS

    def take(self, values: Iterable[Any]) -> None:
        """Raises SchemaTooLargeError if there is no room for the values' entries and texts."""
        for value in values:
            self._entries -= 1
            if isinstance(value, str):
                self._characters -= len(value)
            elif isinstance(value, dict | list):
                self._entries -= len(value)
            if self._entries < 0:
                raise SchemaTooLargeError(
                    f"the request's schemas stand for more than {MOST_ENTRIES} entries"
                )
            if self._characters < 0:
                raise SchemaTooLargeError(
                    f"the request's schemas stand for more than {MOST_CHARACTERS} characters"
                )


def shown_schema(schema: Mapping[str, Any] | None, room: SchemaRoom | None = None) -> Schema:
    """Returns the schema as a template can show it: an object with its properties.

    `room` is shared by the schemas of a request. Raises SchemaTooLargeError.
    """
    whole = schema or {}
    shown = _Shown(whole, room or SchemaRoom()).schema(whole)
    return {**shown, "type": "object", "properties": shown.get("properties", {})}


class _Shown:
    """One schema on its way, with the whole that its references point into.

    `inside` are the references that led to a schema. One that leads back to itself is shown without
    its fields.
    """

    def __init__(self, whole: Mapping[str, Any], room: SchemaRoom) -> None:
        self._whole = whole
        self._room = room
        self._nodes = 0

    def schema(self, value: Any, inside: frozenset[str] = frozenset()) -> Schema:
        flat, inside = self._flat(value, inside)
        types, has_null = _types(flat)
        values, null_value = _enum(flat)
        kind = types[0] if types else _implied_type(flat, values)
        shown: Schema = {"type": kind}
        listed = self._listed(kind, values)
        description = _sentences(flat.get("description"), _hints(types[1:], listed))
        if description:
            shown["description"] = description
        if values:
            shown["enum"] = values
        if flat.get("nullable") is True or has_null or null_value:
            shown["nullable"] = True
        if kind == "object":
            shown |= self._properties(flat, inside)
        item = _item(flat)
        if kind == "array" and item:
            shown["items"] = self.schema(item, inside)
        return shown

    def _properties(self, flat: Schema, inside: frozenset[str]) -> Schema:
        properties = flat.get("properties")
        if not isinstance(properties, Mapping):
            return {}
        shown = {str(name): self.schema(each, inside) for name, each in properties.items()}
        required = flat.get("required")
        listed = required if isinstance(required, list) else []
        names = [each for each in listed if isinstance(each, str) and each in shown]
        return {"properties": shown} | ({"required": names} if names else {})

    def _flat(self, value: Any, inside: frozenset[str]) -> tuple[Schema, frozenset[str]]:
        """Returns the schema without references and combinations, and what it is inside of then."""
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise SchemaTooLargeError(f"it stands for more than {MOST_NODES} schemas")
        if not isinstance(value, Mapping):  # true and false are schemas too
            return {}, inside
        self._room.take(_parts(value))
        flat: Schema = {key: each for key, each in value.items() if key not in ("$ref", "allOf")}
        reference = value.get("$ref")
        if isinstance(reference, str):
            target = self._referred(reference)
            if reference in inside:
                target = {key: target[key] for key in ("type", "description") if key in target}
            inside |= {reference}
            target, inside = self._flat(target, inside)
            flat = self._merged(flat, target)
        parts, inside = self._all_flat(value.get("allOf"), inside)
        flat = self._merged(flat, *parts)
        for key in _ALTERNATIVES:
            alternatives, inside = self._all_flat(flat.pop(key, None), inside)
            if alternatives:
                flat = self._merged(flat, self._united(alternatives))
        return flat, inside

    def _listed(self, kind: str, values: list[Any]) -> str:
        """Returns the values of an enum as JSON if a template with one type does not show them."""
        if kind == "string" and all(isinstance(each, str) for each in values):
            return ""
        shown = []
        for each in values:
            shown.append(json.dumps(each, ensure_ascii=False))
            self._room.take(shown[-1:])
        return ", ".join(shown)

    def _merged(self, *schemas: Schema) -> Schema:
        """Returns one schema that asks for what all of them ask for. The first one's words win."""
        if len(schemas) == 1:
            return schemas[0]
        for each in schemas:
            self._room.take(_parts(each))
        return _merged(schemas)

    def _united(self, alternatives: list[Schema]) -> Schema:
        """Returns one schema that allows what any of them allows."""
        for each in alternatives:
            self._room.take(_parts(each))
        return _united(alternatives)

    def _all_flat(self, values: Any, inside: frozenset[str]) -> tuple[list[Schema], frozenset[str]]:
        flat = [self._flat(each, inside) for each in values] if isinstance(values, list) else []
        return [schema for schema, _ in flat], inside.union(*(within for _, within in flat))

    def _referred(self, reference: str) -> Mapping[str, Any]:
        """Returns the schema that a reference into this one points to, or an empty one."""
        path, _, pointer = reference.partition("#")
        inside = not path and pointer[:1] in ("", "/")
        target: Any = self._whole if inside else {}
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping):
                target = target.get(part)
            elif isinstance(target, list) and part.isdigit() and int(part) < len(target):
                target = target[int(part)]
            else:
                return {}
        return target if isinstance(target, Mapping) else {}


def _parts(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the values of a schema's keys, and those that its lists and enums have."""
    for value in schema.values():
        yield value
        if isinstance(value, list):
            yield from value


def _merged(schemas: Sequence[Schema]) -> Schema:
    merged: Schema = {}
    properties: list[Mapping[str, Any]] = []
    required: list[list[Any]] = []
    for schema in schemas:
        for key, value in schema.items():
            before = merged.get(key)
            if before is None:
                merged[key] = value
            if key == "properties" and isinstance(value, Mapping):
                properties.append(value)
            elif key == "required" and isinstance(value, list):
                required.append(value)
    if len(properties) > 1 and isinstance(merged["properties"], Mapping):
        merged["properties"] = {
            name: each for several in reversed(properties) for name, each in several.items()
        }
    if len(required) > 1 and isinstance(merged["required"], list):
        merged["required"] = _names(name for several in required for name in several)
    return merged


def _names(values: Iterable[Any]) -> list[str]:
    """Returns the texts among the values, each once."""
    return list(dict.fromkeys(each for each in values if isinstance(each, str)))


def _united(alternatives: list[Schema]) -> Schema:
    others = [each for each in alternatives if _types(each) != ([], True)]
    united: Schema = {"nullable": True} if len(others) < len(alternatives) else {}
    if len(others) == 1:
        return {**others[0], **united}
    types = list(dict.fromkeys(kind for each in others for kind in _types(each)[0]))
    if types:
        united["type"] = types
    values = [_enum(each) for each in others]
    if values and all(each for each, _ in values):
        united["enum"] = [value for each, _ in values for value in each]
    objects = [each for each in others if isinstance(each.get("properties"), Mapping)]
    if objects:
        united["properties"] = {
            name: schema
            for each in reversed(objects)
            for name, schema in each["properties"].items()
        }
        required = [each.get("required") or [] for each in objects]
        if len(objects) == len(others) and all(isinstance(each, list) for each in required):
            common = set(_names(required[0])).intersection(*map(_names, required[1:]))
            united["required"] = [name for name in _names(required[0]) if name in common]
    items = [each["items"] for each in others if "items" in each]
    if items:
        united["items"] = items[0] if len(items) == 1 else {"anyOf": items}
    descriptions = [each.get("description") for each in others]
    told = [each for each in descriptions if isinstance(each, str) and each]
    if told:
        united["description"] = " Or: ".join(dict.fromkeys(told))
    return united


def _types(schema: Schema) -> tuple[list[str], bool]:
    """Returns the types that the schema allows, by JSON Schema's names, and whether null is one."""
    named = schema.get("type")
    names = named if isinstance(named, list) else [named]
    lower = [each.lower() for each in names if isinstance(each, str)]
    known = [_OTHER_NAMES.get(each, each) for each in lower]
    return [each for each in dict.fromkeys(known) if each in _TYPES], "null" in lower


def _enum(schema: Schema) -> tuple[list[Any], bool]:
    """Returns the values that the schema lists, and whether null is one."""
    values = schema.get("enum")
    if not isinstance(values, list):
        values = [schema["const"]] if "const" in schema else []
    return [each for each in values if each is not None], None in values


def _implied_type(schema: Schema, values: list[Any]) -> str:
    """Returns the type of a schema that names none."""
    if "properties" in schema or "additionalProperties" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    match values[:1] or [schema.get("default")]:
        case [bool()]:
            return "boolean"
        case [int()]:
            return "integer"
        case [float()]:
            return "number"
        case [list()]:
            return "array"
        case [dict()]:
            return "object"
    return "number" if {"minimum", "maximum"} & schema.keys() else "string"


def _item(schema: Schema) -> Any:
    """Returns the schema of an array's items, which is empty if nothing is said of them."""
    items = schema.get("items")
    if isinstance(items, list):  # as drafts before 2020-12 wrote what is now prefixItems
        return {"anyOf": items} if items else {}
    if isinstance(items, Mapping):
        return items
    first = schema.get("prefixItems")
    return {"anyOf": first} if isinstance(first, list) and first else {}


def _hints(other_types: list[str], listed: str) -> list[str]:
    """Returns sentences about what a template with one type does not show."""
    hints = []
    if other_types:
        hints.append(f"May also be of type {' or '.join(other_types)}.")
    if listed:
        hints.append(f"One of: {listed}.")
    return hints


def _sentences(description: Any, hints: list[str]) -> str:
    begun = [description.strip()] if isinstance(description, str) and description.strip() else []
    return " ".join([*begun, *hints])
