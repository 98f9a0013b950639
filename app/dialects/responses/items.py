"""The items of a Responses conversation, in all the forms in which clients send them.

Clients write items of their own, and they send back all items of an answer.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from app.dialects.fields import (
    ONE,
    ONE_OR_SEVERAL,
    SEVERAL,
    JsonValue,
    Strict,
    unsupported,
)
from app.prompting.conversation import bounded_json

Status = Literal["in_progress", "completed", "incomplete"]


def _by_type(*names: str, implied: Callable[[Mapping[str, Any]], str] | None = None) -> Any:
    """Returns a discriminator that selects a union's member by its `type`.

    `implied` returns the type of a value that has none.
    """

    def tag(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return f"({getattr(value, 'type', None)})"
        named = value.get("type")
        if named is None and implied is not None:
            named = implied(value)
        return f"({named})" if named in names else None

    return Discriminator(
        tag,
        custom_error_type="item",
        custom_error_message=f"Input should be an object of type {', '.join(names)}",
    )


class InputText(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"prompt_cache_breakpoint": ()}

    type: Literal["input_text"]
    text: str


class InputImage(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "detail": ("auto",),
        "file_id": (),
        "prompt_cache_breakpoint": (),
    }

    type: Literal["input_image"]
    image_url: str


class OutputText(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"annotations": ([],)}

    type: Literal["output_text"]
    text: str
    # Clients send these back, but they add nothing to the text. `parsed` comes from OpenAI's SDK.
    logprobs: Annotated[list[Any], AfterValidator(bounded_json)] | None = None
    parsed: JsonValue = None


class Refusal(Strict):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


Part = Annotated[
    Annotated[InputText, Tag("(input_text)")]
    | Annotated[InputImage, Tag("(input_image)")]
    | Annotated[OutputText, Tag("(output_text)")]
    | Annotated[Refusal, Tag("(refusal)")],
    _by_type("input_text", "input_image", "output_text", "refusal"),
]
Content = Annotated[
    Annotated[str, ONE] | Annotated[list[Part], Field(min_length=1, fail_fast=True), SEVERAL],
    ONE_OR_SEVERAL,
]
Output = Annotated[
    Annotated[str, ONE] | Annotated[list[InputText], Field(fail_fast=True), SEVERAL],
    ONE_OR_SEVERAL,
]


class Item(Strict):
    id: str | None = None
    status: Status | None = None


class MessageItem(Item):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"phase": ("commentary", "final_answer")}

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: Content

    @model_validator(mode="after")
    def _only_the_user_shows_images(self) -> "MessageItem":
        images = [part for part in self.content if isinstance(part, InputImage)]
        if images and self.role != "user":
            raise unsupported(
                "content", f"only a message of role 'user' may have images, not {self.role!r}"
            )
        return self

    @property
    def text(self) -> str:
        """Returns the texts of the content, joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if not isinstance(part, InputImage))


class FunctionCallItem(Item):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "async": (False,),
        "caller": ({"type": "direct"},),
        "namespace": (),
    }

    type: Literal["function_call"]
    call_id: str
    name: str = Field(min_length=1)
    arguments: str
    parsed_arguments: JsonValue = None  # OpenAI's SDK adds it in a stream


class FunctionCallOutputItem(Item):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "caller": ({"type": "direct"},),
        "namespace": (),
    }

    type: Literal["function_call_output"]
    call_id: str
    name: str | None = None
    output: Output

    @property
    def text(self) -> str:
        if isinstance(self.output, str):
            return self.output
        return "".join(part.text for part in self.output)


class SummaryText(Strict):
    type: Literal["summary_text"]
    text: str


class ReasoningText(Strict):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Item):
    type: Literal["reasoning"]
    summary: list[SummaryText] = Field(default_factory=list, fail_fast=True)
    content: list[ReasoningText] | None = Field(default=None, fail_fast=True)
    encrypted_content: str | None = None  # only the service that wrote it can read it

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or self.summary)


class ItemReference(Strict):
    """Refers to an item of a kept response by its id."""

    type: Literal["item_reference"] | None = None
    id: str


InputItem = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem


def _without_type(value: Mapping[str, Any]) -> str:
    return "item_reference" if set(value) <= {"id", "type"} else "message"


AnyItem = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[FunctionCallItem, Tag("(function_call)")]
    | Annotated[FunctionCallOutputItem, Tag("(function_call_output)")]
    | Annotated[ReasoningItem, Tag("(reasoning)")]
    | Annotated[ItemReference, Tag("(item_reference)")],
    _by_type(
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
