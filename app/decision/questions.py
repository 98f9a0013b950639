"""Questions in the form that all dialects share, and how the model is shown them.

A question is a line such as `2: How is the weather? A) good B) bad`, and its answer a line `2: A`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from app.decision.order import Order
from app.errors import BadRequest
from app.prompting.conversation import Part, TextPart
from app.prompting.labels import Labels, LabelSet

Kind = Literal["predicate", "choice", "score"]


@dataclass(frozen=True)
class Option:
    """A possible answer: a choice's value or a score's level, as the model is shown it."""

    text: str
    description: str | None = None


@dataclass(frozen=True)
class Question:
    """A question. `field` is the request's field that has it, which errors name.

    `options` are a choice's values or a score's levels, in the request's order. Those of a
    predicate are yes and no. `options_field` is the field that has them.
    """

    kind: Kind
    parts: Sequence[Part]
    options: Sequence[Option]
    field: str
    options_field: str

    @property
    def has_images(self) -> bool:
        """Returns whether the question has other parts than texts."""
        return any(not isinstance(part, TextPart) for part in self.parts)

    def written(self, number: int, labels: LabelSet, order: Order) -> list[Part]:
        """Returns the question's line, with its options in this order behind their labels."""
        parts: list[Part] = [TextPart(f"{number}: ")]
        parts.extend(self.parts)
        parts.append(TextPart(f" {self._shown_options(labels, order)}"))
        return _joined(parts)

    def _shown_options(self, labels: LabelSet, order: Order) -> str:
        options = [self.options[index] for index in order]
        described = any(option.description for option in options)
        if self.kind == "predicate" and not described:
            return " or ".join(labels.texts)
        numbers = tuple(str(index) for index in range(len(options)))
        if labels.texts == numbers == tuple(option.text for option in options) and not described:
            return f"0 to {len(options) - 1}"
        between = "\n" if described or any("\n" in option.text for option in options) else " "
        shown = between.join(
            _shown(label, option) for label, option in zip(labels.texts, options, strict=False)
        )
        return shown if between == " " else f"\n{shown}"


def labels_of(question: Question, labels: Labels) -> LabelSet:
    """Returns the labels of a question's options.

    Raises BadRequest, which names the field, if the model's vocabulary has too few.
    """
    count = len(question.options)
    match question.kind:
        case "predicate":
            usable = labels.answers
        case "score" if count <= len(labels.digits):
            usable = labels.digits
        case _:
            usable = labels.letters
    if count > len(usable):
        raise BadRequest(
            f"{question.options_field}: the model's vocabulary has {len(usable)} labels that are "
            f"one token each, but the question needs {count}.",
            param=question.options_field,
            code="too_few_labels",
        )
    return LabelSet(usable.texts[:count], usable.tokens[:count])


def _shown(label: str, option: Option) -> str:
    if option.text == label:
        return f"{label}) {option.description}" if option.description else f"{label})"
    described = f": {option.description}" if option.description else ""
    return f"{label}) {option.text}{described}"


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Returns the parts with neighbouring texts as one."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, TextPart) and joined and isinstance(joined[-1], TextPart):
            joined[-1] = TextPart(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined
