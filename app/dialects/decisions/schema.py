"""The body of `POST /v1/decisions`."""

import json
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from app.decision.questions import Option, Question
from app.dialects.deciding import MOST_OPTIONS, MOST_QUESTIONS, DecidingFields, by_question_type
from app.dialects.fields import (
    MAX_MESSAGES,
    MAX_NAME,
    MAX_PARTS,
    ONE,
    ONE_OR_SEVERAL,
    SEVERAL,
    Fields,
    quoted,
    unsupported,
)
from app.dialects.item_turns import content_of
from app.dialects.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputImage,
    InputItem,
    InputJson,
    InputText,
    MessageItem,
    OtherItem,
    by_type,
)
from app.prompting.conversation import Part, TextPart
from app.prompting.labels import NO, YES

Name = Annotated[str, Field(max_length=MAX_NAME)]

Item = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[FunctionCallItem, Tag("(function_call)")]
    | Annotated[FunctionCallOutputItem, Tag("(function_call_output)")]
    | Annotated[OtherItem, Tag("(other)")],
    by_type("message", "function_call", "function_call_output", implied=lambda _value: "message"),
]


QuestionPart = Annotated[
    Annotated[InputText, Tag("(input_text)")]
    | Annotated[InputImage, Tag("(input_image)")]
    | Annotated[InputJson, Tag("(input_json)")],
    by_type("input_text", "input_image", "input_json"),
]


class _Question(Fields):
    name: Name | None = None
    instructions: (
        Annotated[str, ONE]
        | Annotated[list[QuestionPart], Field(fail_fast=True, max_length=MAX_PARTS), SEVERAL]
    ) = Field(discriminator=ONE_OR_SEVERAL)

    def parts(self, field: str) -> list[Part]:
        """Returns the parts of the instructions. `field` is the question's."""
        content = content_of(self.instructions, f"{field}.instructions")
        return [TextPart(content)] if isinstance(content, str) else list(content)

    @model_validator(mode="after")
    def _asks(self) -> "_Question":
        if not self.instructions:
            raise unsupported("instructions", "it is empty")
        return self


class PredicateQuestion(_Question):
    type: Literal["predicate"]

    def question(self, field: str) -> Question:
        """Returns the question. `field` is its own in the request."""
        options = (Option(YES), Option(NO))
        return Question("predicate", self.parts(field), options, field, field)


class Choice(Fields):
    value: str | bool
    description: str | None = None

    @property
    def text(self) -> str:
        """Returns the value as the model is shown it."""
        return self.value if isinstance(self.value, str) else json.dumps(self.value)


class ChoiceQuestion(_Question):
    type: Literal["choice"]
    choices: list[Choice] = Field(min_length=2, max_length=MOST_OPTIONS, fail_fast=True)

    @model_validator(mode="after")
    def _unlike(self) -> "ChoiceQuestion":
        seen = set[tuple[type, str | bool]]()
        for index, choice in enumerate(self.choices):
            key = (type(choice.value), choice.value)
            if key in seen:
                raise unsupported(
                    f"choices.{index}.value", f"{quoted(choice.value)} is another choice's too"
                )
            seen.add(key)
        return self

    def question(self, field: str) -> Question:
        """Returns the question. `field` is its own in the request."""
        options = [Option(each.text, each.description) for each in self.choices]
        return Question("choice", self.parts(field), options, field, f"{field}.choices")


class Level(Fields):
    label: str
    description: str | None = None


class ScoreQuestion(_Question):
    type: Literal["score"]
    levels: list[Level] = Field(min_length=2, max_length=MOST_OPTIONS, fail_fast=True)

    @model_validator(mode="after")
    def _unlike(self) -> "ScoreQuestion":
        seen = set[str]()
        for index, level in enumerate(self.levels):
            if level.label in seen:
                raise unsupported(
                    f"levels.{index}.label", f"{quoted(level.label)} is another level's too"
                )
            seen.add(level.label)
        return self

    def question(self, field: str) -> Question:
        """Returns the question. `field` is its own in the request."""
        options = [Option(each.label, each.description) for each in self.levels]
        return Question("score", self.parts(field), options, field, f"{field}.levels")


AnyQuestion = Annotated[
    Annotated[PredicateQuestion, Tag("(predicate)")]
    | Annotated[ChoiceQuestion, Tag("(choice)")]
    | Annotated[ScoreQuestion, Tag("(score)")],
    by_question_type("predicate", "choice", "score"),
]


class DecisionsRequest(DecidingFields):
    hints: ClassVar[frozenset[str]] = frozenset(
        {
            "metadata",
            "prompt_cache_key",
            "prompt_cache_options",
            "safety_identifier",
            "service_tier",
            "user",
        }
    )

    input: Annotated[
        Annotated[str, ONE]
        | Annotated[
            list[Item], Field(min_length=1, fail_fast=True, max_length=MAX_MESSAGES), SEVERAL
        ],
        ONE_OR_SEVERAL,
    ]
    questions: list[AnyQuestion] = Field(min_length=1, max_length=MOST_QUESTIONS, fail_fast=True)

    @model_validator(mode="after")
    def _outputs_have_calls(self) -> "DecisionsRequest":
        called = set[str | None]()
        for index, item in enumerate(self.items):
            id = getattr(item, "call_id", None)
            if id is None:
                continue
            if not str(item.type).endswith("_output"):
                called.add(id)
            elif id not in called:
                field = f"input.{index}.call_id"
                raise unsupported(field, f"no call before it has the id {quoted(id)}")
        return self

    @property
    def items(self) -> list[InputItem]:
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=self.input)]
        return list(self.input)

    @property
    def asked(self) -> list[Question]:
        """Returns the questions in the form that both dialects share."""
        return [each.question(f"questions.{i}") for i, each in enumerate(self.questions)]
