"""The base of the dialects' request schemas: what is honoured, ignored or refused, and bounds."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    RootModel,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from app.errors import UNSUPPORTED, short
from app.prompting.conversation import bounded_json

MAX_TOP_LOGPROBS = 20
# These bound what a request is made of. No prompt that fits a context comes near to them.
MAX_MESSAGES = 10_000
MAX_PARTS = 10_000
MAX_TOOLS = 1_000
MAX_KEYS = 1_000  # of an object whose fields are known
MAX_TOKEN_IDS = 2**20
MAX_METADATA = 2**16  # characters as JSON
MAX_NAME = 1_024  # characters of what names a user or a cache


def _one_or_several(value: Any) -> str | None:
    return "(string)" if isinstance(value, str) else "(list)" if isinstance(value, list) else None


# A field that takes a string or a list is validated as the one that came, so that an error is
# about that form.
ONE, SEVERAL = Tag("(string)"), Tag("(list)")
ONE_OR_SEVERAL = Discriminator(
    _one_or_several,
    custom_error_type="string_or_list",
    custom_error_message="Input should be a string or a list",
)


def unsupported(field: str, message: str) -> PydanticCustomError:
    """Returns the error for a field or value that Easel does not support.

    `field` is the name of a field inside the value that is being validated, or empty for itself.
    """
    return PydanticCustomError(UNSUPPORTED, "{message}", {"field": field, "message": message})


def quoted(value: Any) -> str:
    """Returns a value as JSON for an error message, cut off where it is too long."""
    return short(json.dumps(value, ensure_ascii=False))


JsonObject = Annotated[dict[str, Any], AfterValidator(bounded_json)]
JsonValue = Annotated[Any, AfterValidator(bounded_json)]


class Fields(BaseModel):
    """The fields of an object in a request. The subclass declares those that Easel honours.

    Keys that are not declared are ignored, because clients carry them from other providers.
    `neutral` lists fields that would promise what does not happen, each with the values that ask
    for nothing. These values and null are accepted. Any other value is refused.
    """

    model_config = ConfigDict(extra="ignore", strict=True)
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    _ignored: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        if len(data) > MAX_KEYS:
            raise unsupported("", f"it has {len(data)} fields; at most {MAX_KEYS} are allowed")
        kept, ignored = {}, []
        names = cls._names()
        for field, value in data.items():
            if field in names:
                kept[field] = value
            elif value is None:
                continue
            elif field in cls.neutral:
                _check_neutral(field, value, cls.neutral[field])
            elif cls._ignores(field):
                ignored.append(field)
            else:
                kept[field] = value  # pydantic refuses it
        made = handler(kept)
        made._ignored = tuple(ignored)
        return made

    @classmethod
    def _names(cls) -> set[str]:
        """Returns the fields' names in a request. Some differ from those of the attributes."""
        return {field.alias or name for name, field in cls.model_fields.items()}

    @classmethod
    def _ignores(cls, _field: str) -> bool:
        return True

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        made = handler(schema)
        described = handler.resolve_ref_schema(made)
        properties = described.setdefault("properties", {})
        for field, allowed in cls.neutral.items():
            properties[field] = {"enum": [None, *allowed]}
        return made


class RequestFields(Fields):
    """The fields of a whole request. A key that is not known is refused, as OpenAI does.

    `hints` are the names of fields that are ignored whatever their value is: they say how to do
    something, or concern a provider, and promise nothing about the answer.
    """

    model_config = ConfigDict(extra="forbid")
    hints: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def _ignores(cls, field: str) -> bool:
        return field in cls.hints

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        made = super().__get_pydantic_json_schema__(schema, handler)
        described = handler.resolve_ref_schema(made)
        for field in sorted(cls.hints):
            described["properties"][field] = {"description": "Accepted without effect"}
        described["additionalProperties"] = {"type": "null"}
        return made


def ignored_fields(value: BaseModel) -> list[str]:
    """Returns the names of the ignored fields, such as "messages.cache_control", each once."""
    names = dict.fromkeys(_ignored_below(value, ""))
    return list(names)


def _ignored_below(value: Any, path: str) -> Iterator[str]:
    match value:
        case RootModel(root=root):
            yield from _ignored_below(root, path)
        case Fields():
            yield from (path + name for name in value._ignored)
            for name in value.model_fields_set:
                yield from _ignored_below(getattr(value, name), f"{path}{name}.")
        case [Fields(), *_]:
            for each in value:
                yield from _ignored_below(each, path)


def _check_neutral(field: str, value: Any, allowed: tuple[Any, ...]) -> None:
    # True is not meant by 1, although both are equal in Python.
    if not any(value == each and (value is True) == (each is True) for each in allowed):
        values = ", ".join(json.dumps(each) for each in (None, *allowed))
        raise unsupported(field, f"{quoted(value)} is not supported; allowed: {values}")


def _whole(value: Any) -> Any:
    """Returns 2 for 2.0, which clients send whose language has one type of numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unlimited(value: Any) -> Any:
    """Returns None for -1, which other servers take for no limit."""
    return None if value == -1 and value is not True else value


Whole = Annotated[int, BeforeValidator(_whole)]
TokenBudget = Annotated[
    Annotated[Whole, Field(ge=0, lt=2**31)] | None,
    BeforeValidator(_unlimited),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"enum": [None, -1]}]}),
]
TokenLimit = Annotated[
    Annotated[Whole, Field(ge=1)] | None,
    BeforeValidator(_unlimited),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"enum": [None, -1]}]}),
]
