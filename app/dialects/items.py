"""The items of an OpenAI conversation, in all the forms in which clients send them.

Responses and decisions have them.

Clients write items of their own, and they send back all items of an answer. Items of other types,
which OpenAI's own tools and other servers made, are kept as far as they are calls and results.
"""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PrivateAttr, Tag, model_validator

from app.dialects.fields import (
    MAX_PARTS,
    ONE,
    ONE_OR_SEVERAL,
    SEVERAL,
    Fields,
    JsonObject,
    JsonValue,
    unsupported,
)


def by_type(*names: str, implied: Callable[[Mapping[str, Any]], str] | None = None) -> Any:
    """Returns a discriminator that selects a union's member by its `type`.

    A type that is not among the names selects the member that is tagged "(other)". `implied`
    returns the type of a value that has none.
    """

    def tag(value: Any) -> str | None:
        mapping = isinstance(value, Mapping)
        named = value.get("type") if mapping else getattr(value, "type", None)
        if named is None and mapping and implied is not None:
            named = implied(value)
        if not isinstance(named, str):
            return None
        return f"({named})" if named in names else "(other)"

    return Discriminator(
        tag,
        custom_error_type="item",
        custom_error_message=f"Input should be an object with a type, such as {names[0]!r}",
    )


class InputText(Fields):
    type: Literal["input_text"]
    text: str


class InputImage(Fields):
    type: Literal["input_image"]
    image_url: str | None = None


class InputJson(Fields):
    """JSON that is shown as text."""

    type: Literal["input_json"]
    data: JsonObject | list[JsonObject]

    @property
    def text(self) -> str:
        return json.dumps(self.data, ensure_ascii=False, separators=(",", ":"))


class OutputText(Fields):
    type: Literal["output_text"]
    text: str
    logprobs: JsonValue | None = None  # listed again, but shown to nobody


class OtherPart(Fields):
    """A part of another type. Its text is shown, if it has one."""

    type: str
    text: Any = None
    refusal: Any = None


Part = Annotated[
    Annotated[InputText, Tag("(input_text)")]
    | Annotated[InputImage, Tag("(input_image)")]
    | Annotated[InputJson, Tag("(input_json)")]
    | Annotated[OutputText, Tag("(output_text)")]
    | Annotated[OtherPart, Tag("(other)")],
    by_type("input_text", "input_image", "input_json", "output_text"),
]
Content = Annotated[
    Annotated[str, ONE]
    | Annotated[list[Part], Field(fail_fast=True, max_length=MAX_PARTS), SEVERAL],
    ONE_OR_SEVERAL,
]


class Item(Fields):
    id: str | None = None
    status: str | None = None

    _named_here: bool = PrivateAttr(default=False)

    @property
    def named_here(self) -> bool:
        """Returns whether this server made the item's id. No client can set this."""
        return self._named_here

    def named(self, id: str) -> Self:
        """Returns the item with an id that this server made."""
        item = self.model_copy(update={"id": id})
        item._named_here = True
        return item


class MessageItem(Item):
    type: Literal["message"] | None = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: Content | None

    @model_validator(mode="after")
    def _only_the_user_shows_images(self) -> "MessageItem":
        images = [part for part in self.content or () if isinstance(part, InputImage)]
        if images and self.role != "user":
            raise unsupported(
                "content", f"only a message of role 'user' may have images, not {self.role!r}"
            )
        return self


class FunctionCallItem(Item):
    type: Literal["function_call"]
    call_id: str
    name: str = Field(min_length=1)
    namespace: str | None = None
    arguments: str


class FunctionCallOutputItem(Item):
    type: Literal["function_call_output"]
    call_id: str
    name: str | None = None
    output: Content | None


class OtherItem(Item):
    """An item of another type: a call if it has a `call_id`, or the result of one.

    Results have a type that ends in "_output". Items that are neither are not shown.
    """

    type: str
    call_id: str | None = None
    name: str | None = None
    arguments: JsonValue = None
    input: JsonValue = None
    action: JsonValue = None
    operation: JsonValue = None
    output: JsonValue = None


class SummaryText(Fields):
    type: Literal["summary_text"]
    text: str


class ReasoningText(Fields):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Item):
    type: Literal["reasoning"]
    summary: list[SummaryText] | None = Field(default=None, fail_fast=True, max_length=MAX_PARTS)
    content: list[ReasoningText] | None = Field(default=None, fail_fast=True, max_length=MAX_PARTS)
    encrypted_content: str | None = None  # only the service that wrote it can read it

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or self.summary or ())


class ItemReference(Fields):
    """Refers to an item of a kept response by its id."""

    type: Literal["item_reference"] | None = None
    id: str


InputItem = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem | OtherItem


def _without_type(value: Mapping[str, Any]) -> str:
    return "item_reference" if set(value) <= {"id", "type"} else "message"


AnyItem = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[FunctionCallItem, Tag("(function_call)")]
    | Annotated[FunctionCallOutputItem, Tag("(function_call_output)")]
    | Annotated[ReasoningItem, Tag("(reasoning)")]
    | Annotated[ItemReference, Tag("(item_reference)")]
    | Annotated[OtherItem, Tag("(other)")],
    by_type(
        "message",
        "function_call",
        "function_call_output",
        "reasoning",
        "item_reference",
        implied=_without_type,
    ),
]


def sent_back(item: dict[str, Any]) -> InputItem:
    """Returns an item of an answer in the form in which a client would send it back.

    The item is not validated, because it was made here.
    """
    return _unvalidated(item).named(item["id"])


def _unvalidated(item: dict[str, Any]) -> InputItem:
    match item["type"]:
        case "message":
            texts = [OutputText.model_construct(**part) for part in item["content"]]
            return MessageItem.model_construct(**{**item, "content": texts})
        case "reasoning":
            summary = [SummaryText.model_construct(**part) for part in item["summary"]]
            thoughts = [ReasoningText.model_construct(**part) for part in item["content"]]
            return ReasoningItem.model_construct(
                **{**item, "summary": summary, "content": thoughts}
            )
        case _:
            return FunctionCallItem.model_construct(**item)
