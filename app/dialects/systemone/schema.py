"""The body of `POST /v1/systemone`."""

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag, field_validator, model_validator

from app.decision.questions import Option, Question
from app.dialects.deciding import MOST_OPTIONS, MOST_QUESTIONS, DecidingFields, by_question_type
from app.dialects.fields import MAX_NAME, Fields, JsonObject, JsonValue, quoted, unsupported
from app.prompting.conversation import (
    Conversation,
    ImagePart,
    ImageUrl,
    Part,
    TextPart,
    Turn,
)
from app.prompting.labels import NO, YES

MAX_IMAGES = 1_000
_SWITCH = "enable_thinking"
_OWN_FIELDS = ("messages", "tools", "documents", "add_generation_prompt")

Text = Annotated[str, Field(min_length=1)]


class _Question(Fields):
    """A question. A field that is not known is refused: it could be meant to change the answer."""

    model_config = ConfigDict(extra="forbid")

    instructions: JsonValue

    @classmethod
    def _ignores(cls, _field: str) -> bool:
        return False

    @field_validator("instructions")
    @classmethod
    def _asks(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | list) or not value:
            raise ValueError("it should be a text or JSON, and not empty")
        return value

    @property
    def parts(self) -> list[Part]:
        return [TextPart(as_text(self.instructions))]


class Meanings(Fields):
    model_config = ConfigDict(extra="forbid")

    true: str | None = None
    false: str | None = None

    @classmethod
    def _ignores(cls, _field: str) -> bool:
        return False


class NoulQuestion(_Question):
    """A question whose answer is yes or no."""

    type: Literal["noul"]
    criteria: Meanings | None = None

    def question(self, field: str) -> Question:
        """Returns the question. `field` is its own in the request."""
        meanings = self.criteria or Meanings()
        options = (Option(YES, meanings.true), Option(NO, meanings.false))
        return Question("predicate", self.parts, options, field, f"{field}.criteria")


class ChoiceQuestion(_Question):
    type: Literal["choice"]
    criteria: dict[Text, str | None] = Field(min_length=2, max_length=MOST_OPTIONS)

    def question(self, field: str) -> Question:
        """Returns the question. `field` is its own in the request."""
        options = [Option(name, described) for name, described in self.criteria.items()]
        return Question("choice", self.parts, options, field, f"{field}.criteria")


class ScoreQuestion(_Question):
    type: Literal["score"]
    criteria: list[Text] = Field(min_length=2, max_length=MOST_OPTIONS, fail_fast=True)

    @model_validator(mode="after")
    def _unlike(self) -> "ScoreQuestion":
        for index, level in enumerate(self.criteria):
            if level in self.criteria[:index]:
                raise unsupported(f"criteria.{index}", f"{quoted(level)} is another level too")
        return self

    def question(self, field: str) -> Question:
        """Returns the question. `field` is its own in the request."""
        options = [Option(level) for level in self.criteria]
        return Question("score", self.parts, options, field, f"{field}.criteria")


AnyQuestion = Annotated[
    Annotated[NoulQuestion, Tag("(noul)")]
    | Annotated[ChoiceQuestion, Tag("(choice)")]
    | Annotated[ScoreQuestion, Tag("(score)")],
    by_question_type("noul", "choice", "score"),
]


class SystemOneRequest(DecidingFields):
    state: JsonValue
    questions: dict[Annotated[str, Field(min_length=1, max_length=MAX_NAME)], AnyQuestion] = Field(
        min_length=1, max_length=MOST_QUESTIONS
    )
    instructions: str | None = None
    images: Annotated[list[str], Field(fail_fast=True, max_length=MAX_IMAGES)] | None = Field(
        default=None, description="Addresses of images, which come before the state"
    )
    chat_template_kwargs: JsonObject | None = Field(
        default=None, description="Variables of the chat template; enable_thinking is only false"
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _no_own_fields(cls, value: JsonObject | None) -> JsonObject | None:
        for name in _OWN_FIELDS:
            if name in (value or {}):
                raise ValueError(f"the variable {name!r} cannot be set here")
        if (value or {}).get(_SWITCH) not in (None, False):
            raise ValueError(f"{_SWITCH} is only false: a decision is read without a thought")
        return value

    @property
    def conversation(self) -> Conversation:
        """Returns the instructions as the system's turn, and the images and the state."""
        turns = [] if self.instructions is None else [Turn("system", self.instructions)]
        state = as_text(self.state)
        images = [
            ImagePart(ImageUrl(url), f"images.{index}")
            for index, url in enumerate(self.images or [])
        ]
        return [*turns, Turn("user", (*images, TextPart(f"\n{state}")) if images else state)]

    @property
    def template_options(self) -> dict[str, Any]:
        """Returns the variables of the chat template."""
        options = self.chat_template_kwargs or {}
        return {name: value for name, value in options.items() if name != _SWITCH}

    @property
    def asked(self) -> list[Question]:
        """Returns the questions in the form that both dialects share."""
        return [each.question(f"questions.{id}") for id, each in self.questions.items()]


def as_text(value: Any) -> str:
    """Returns a text as it is, and other JSON as its text."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
