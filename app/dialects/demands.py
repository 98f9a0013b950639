"""What requests demand of their answers: JSON by a schema, a pattern, calls of tools.

The fields of all dialects become one `Demand`, which is compiled and enforced token by token. Text
formats are those of OpenAI and of vLLM, under all the names that clients use.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from app.answer.constraint import Demand
from app.constraint import kinds
from app.dialects.fields import Fields, JsonObject, RequestFields, quoted, unsupported
from app.errors import UNSUPPORTED, BadRequest, short
from app.prompting.conversation import Tool, bounded_json

MAX_PATTERN = 10_000  # characters of a regular expression
MAX_GRAMMAR = 100_000  # characters


@dataclass(frozen=True)
class Choice:
    """A tool choice. If `names` are given, only these tools may be called."""

    mode: Literal["none", "auto", "required"]
    names: tuple[str, ...] | None = None
    single: bool = False  # the answer is exactly one call


def read_choice(value: Any) -> Choice:
    """Returns the tool choice of a chat or a response. Raises an error of validation."""
    match value:
        case None | "auto":
            return Choice("auto")
        case "none" | "required" as mode:
            return Choice(mode)
        case {"type": "function", "function": {"name": str(name)}} | {
            "type": "function",
            "name": str(name),
        }:
            return Choice("required", (name,), single=True)
        case {"type": "allowed_tools", "allowed_tools": dict(allowed)} | (
            {"type": "allowed_tools"} as allowed
        ):
            return _allowed_tools(allowed)
    raise unsupported(
        "",
        f'{quoted(value)} is not supported; allowed: null, "none", "auto", "required", and an '
        "object of type function or allowed_tools",
    )


def _allowed_tools(allowed: dict[str, Any]) -> Choice:
    mode, tools = allowed.get("mode"), allowed.get("tools")
    if mode not in ("auto", "required"):
        raise unsupported("mode", f'{quoted(mode)} is not supported; allowed: "auto", "required"')
    names = []
    for tool in tools if isinstance(tools, list) else []:
        match tool:
            case {"function": {"name": str(name)}} | {"name": str(name)}:
                names.append(name)
    if not names:
        raise unsupported("tools", "it must name at least one function")
    return Choice(mode, tuple(names))


def _checked_choice(value: Any) -> Any:
    read_choice(value)
    return value


ToolChoice = Annotated[Any, AfterValidator(_checked_choice)]


def _read_schema(value: Any) -> Any:
    """Returns a schema that came as an object or as its JSON text."""
    if isinstance(value, str):
        try:
            value = bounded_json(json.loads(value))
        except (ValueError, RecursionError) as error:
            raise ValueError("it is not JSON") from error
    if not isinstance(value, dict | bool | None):
        raise ValueError("a JSON schema is an object")
    return value


SchemaOrText = Annotated[Any, AfterValidator(bounded_json), AfterValidator(_read_schema)]
Choices = Annotated[list[str], Field(min_length=1, max_length=kinds.MOST_CHOICES, fail_fast=True)]
Pattern = Annotated[str, Field(max_length=MAX_PATTERN)]
Lark = Annotated[str, Field(max_length=MAX_GRAMMAR)]


class JsonSchemaFormat(Fields):
    """OpenAI's description of a schema. It is enforced whether it is strict or not."""

    name: str | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """The format of a chat's answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise unsupported("json_schema", "the type json_schema needs it")
        return self

    def demand(self, field: str) -> Demand | None:
        if self.type == "json_object":
            return Demand(kinds.JsonObject(), field)
        if self.type == "json_schema" and self.json_schema is not None:
            schema = self.json_schema.schema_
            return Demand(
                by_schema({} if schema is None else schema), f"{field}.json_schema.schema"
            )
        return None


class TextFormat(JsonSchemaFormat):
    """The format of a response's text, which has the schema's fields beside its type."""

    type: Literal["text", "json_object", "json_schema"]

    @model_validator(mode="after")
    def _has_its_schema(self) -> "TextFormat":
        if self.type == "json_schema" and self.schema_ is None:
            raise unsupported("schema", "the type json_schema needs it")
        return self

    def demand(self, field: str) -> Demand | None:
        if self.type == "json_object":
            return Demand(kinds.JsonObject(), field)
        return None if self.schema_ is None else Demand(by_schema(self.schema_), f"{field}.schema")


class StructuredOutputs(Fields):
    """vLLM's object of demands, of which it has at most one."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"structural_tag": ()}

    json_: SchemaOrText = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Lark | None = None

    def demands(self, field: str) -> list[Demand]:
        kind = Demand(kinds.JsonObject(), f"{field}.json_object")
        given = _demands(
            self.json_,
            self.regex,
            self.choice,
            self.grammar,
            [f"{field}.{name}" for name in _NAMES],
        )
        return [*given, kind] if self.json_object else given


_NAMES = ("json", "regex", "choice", "grammar")


class DemandFields(RequestFields):
    """The fields of OpenAI's and vLLM's chat and raw completions that demand a form of text."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Lark | None = None

    @model_validator(mode="after")
    def _demands_one_form(self) -> "DemandFields":
        first, *others = [*self._demands(), None]
        if first is not None and others[0] is not None:
            raise unsupported(others[0].field, f"it cannot be demanded together with {first.field}")
        return self

    @property
    def text_demand(self) -> Demand | None:
        """Returns what the request demands of the answer's text."""
        return next(iter(self._demands()), None)

    def _demands(self) -> list[Demand]:
        demands = _demands(
            self.guided_json,
            self.guided_regex,
            self.guided_choice,
            self.guided_grammar,
            [f"guided_{name}" for name in _NAMES],
        )
        if self.structured_outputs is not None:
            demands += self.structured_outputs.demands("structured_outputs")
        asked = None
        if self.response_format is not None:
            asked = self.response_format.demand("response_format")
        return demands if asked is None else [asked, *demands]


def by_schema(schema: dict[str, Any] | bool) -> kinds.JsonSchema:
    return kinds.JsonSchema(json.dumps(schema))


def answer_demand(
    text: Demand | None,
    tools: Sequence[Tool],
    choice: Choice,
    *,
    parallel: bool,
) -> Demand | None:
    """Returns what a chat's answer must be, or None if it may be anything.

    `text` is the demand on its text, and `tools` are those that the model is shown. Raises
    BadRequest, which names `tool_choice`, if the choice cannot be made among the tools.
    """
    if choice.mode == "none":
        return text
    named = _named(tools, choice)
    fields = {tool.name: tool.field for tool in named}
    most = None if parallel and not choice.single else 1
    if choice.mode == "required":
        if text is not None:
            raise _bad_choice(f"a call cannot be required together with {text.field}")
        if not named:
            raise _bad_choice("a call cannot be required without tools")
        return Demand(kinds.Calls(_callables(named), 1, most), "tools", fields)
    if text is not None:
        if not named:
            return text
        return Demand(kinds.TextOrCalls(text.kind, _callables(named), most), text.field, fields)
    if choice.names is not None or any(tool.strict for tool in named):
        return Demand(kinds.TextAndCalls(_callables(named), most), "tools", fields)
    return None


def _named(tools: Sequence[Tool], choice: Choice) -> Sequence[Tool]:
    if choice.names is None:
        return tools
    known = {tool.name: tool for tool in tools}
    for name in choice.names:
        if name not in known:
            raise _bad_choice(f"no tool has the name {short(name)!r}")
    return [known[name] for name in dict.fromkeys(choice.names)]


def _callables(tools: Sequence[Tool]) -> tuple[kinds.Callable, ...]:
    return tuple(
        kinds.Callable(
            tool.name,
            None if tool.parameters is None else json.dumps(tool.parameters),
            tool.strict,
        )
        for tool in tools
    )


def _bad_choice(why: str) -> BadRequest:
    return BadRequest(f"tool_choice: {why}.", param="tool_choice", code=UNSUPPORTED)


def _demands(
    schema: Any,
    regex: str | None,
    choice: Sequence[str] | None,
    grammar: str | None,
    names: Iterable[str],
) -> list[Demand]:
    """Returns the demands that are not None. `names` are those of their fields."""
    demanded = (
        None if schema is None else by_schema(schema),
        None if regex is None else kinds.Pattern(regex),
        None if choice is None else kinds.OneOf(tuple(choice)),
        None if grammar is None else kinds.Grammar(grammar),
    )
    pairs = zip(demanded, names, strict=True)
    return [Demand(kind, name) for kind, name in pairs if kind is not None]
