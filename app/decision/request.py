"""A decision in the form that all dialects share, and its conversion to the worker's form.

Questions share canvases as far as these have room, or have one each. Each canvas has a prompt of
its own: the conversation with the canvas' questions at its end, numbered from 1. What these prompts
have in common is sent, encoded and kept once.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.decision.order import MOST_ORDERS, Order, orders
from app.decision.questions import Question, labels_of
from app.errors import BadRequest, ContextLengthExceeded
from app.prompting.conversation import (
    Content,
    Conversation,
    ImagePart,
    Part,
    TextPart,
    Turn,
)
from app.prompting.images import Picture
from app.prompting.labels import LabelSet, line
from app.prompting.prompt import Prompt, PromptBuilder
from engine.messages import (
    MOST_CANVAS_STEPS,
    Decision,
    GenerateRequest,
    LabelSlot,
    Read,
    Ready,
    Sampling,
)

# Tokens that a template puts behind the questions, with some to spare.
_AROUND_TOKENS = 64


@dataclass(frozen=True)
class DecisionRequest:
    """A request of any dialect. Errors about the conversation name the field `prompt_field`."""

    conversation: Conversation
    questions: Sequence[Question]
    prompt_field: str
    seed: int = 0
    samples: int = 1
    steps: int = 1
    joint: bool = True
    permute: bool = False
    priority: int = 0
    timeout_s: float | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A question on a canvas, with its options in one of their orders."""

    index: int  # of the question
    question: Question
    labels: LabelSet
    order: Order


@dataclass(frozen=True)
class AskedCanvas:
    """A canvas' questions, and its tokens as the worker gets them."""

    asked: list[Asked]
    canvas: list[int]
    slots: list[LabelSlot]

    @property
    def has_images(self) -> bool:
        return any(each.question.has_images for each in self.asked)


@dataclass(frozen=True)
class Prepared:
    """A request in the worker's form, and the canvases that it reads, in their order."""

    request: GenerateRequest
    canvases: list[AskedCanvas]
    prompt_tokens: int  # of all prompts, what they have in common counted once


def canvases(request: DecisionRequest, prompts: PromptBuilder, limits: Ready) -> list[AskedCanvas]:
    """Returns the canvases that the request needs.

    Raises BadRequest, which names the question, if the vocabulary has too few labels for it.
    """
    turns = 1
    if request.permute:
        counts = [len(q.options) for q in request.questions if q.kind == "choice"]
        turns = min(MOST_ORDERS, max(counts, default=1))
    made: list[AskedCanvas] = []
    labels = [labels_of(question, prompts.labels) for question in request.questions]
    known = set[tuple[int, Order]]()
    for turn in range(turns):
        asked = [
            Asked(index, question, labels[index], _order(question, turn, turns))
            for index, question in enumerate(request.questions)
        ]
        if not request.joint:  # a question that is alone need not be asked twice in one order
            asked = [each for each in asked if (each.index, each.order) not in known]
            known.update((each.index, each.order) for each in asked)
        made += _packed(asked, request.joint, prompts, limits)
    return made


def with_questions(conversation: Conversation, asked: Sequence[Asked]) -> Conversation:
    """Returns the conversation with a canvas' questions behind it, as the user's last words."""
    *before, last = ending_with_user(conversation)
    assert isinstance(last, Turn)
    parts: list[Part] = []
    for number, each in enumerate(asked, 1):
        parts += each.question.written(number, each.labels, each.order)
    return [*before, replace(last, content=_followed(last.content, parts))]


def ending_with_user(conversation: Conversation) -> Conversation:
    """Returns the conversation, with an empty turn of the user's if it does not end with one."""
    if conversation:
        last = conversation[-1]
        if isinstance(last, Turn) and last.role == "user":
            return conversation
    return [*conversation, Turn("user", "")]


def prepare(
    request: DecisionRequest,
    asked: Sequence[AskedCanvas],
    pictures: Mapping[int, Sequence[Picture]],
    prompts: PromptBuilder,
    limits: Ready,
    salt: str = "",
) -> list[Prepared]:
    """Returns the request in the worker's form: one message, or more if prompts have images.

    `pictures` are those of the conversation (by the key -1), and of the conversation with a
    canvas' questions if these have images (by the canvas' number). Raises BadRequest or
    ContextLengthExceeded if a prompt can't be made, or leaves no room.
    """
    steps = len(asked) * request.samples * request.steps
    if steps > MOST_CANVAS_STEPS:
        raise BadRequest(
            f"questions: they need {len(asked)} canvases; with samples ({request.samples}) and "
            f"steps ({request.steps}) these have {steps} denoising steps, of which at most "
            f"{MOST_CANVAS_STEPS} are allowed.",
            param="questions",
        )
    writer = _Writer(request, prompts, pictures, limits)
    plain = [number for number, each in enumerate(asked) if not each.has_images]
    written = {
        number: writer.prompt(number, each.asked, has_images=each.has_images)
        for number, each in enumerate(asked)
    }
    for number, prompt in written.items():
        _check_room(prompt.tokens, limits, asked[number].asked[0].question.field)
    shared = min((_common(written[n].tokens, writer.bare.tokens) for n in plain), default=0)
    groups: list[tuple[list[int], int]] = []
    together = [n for n in plain if len(written[n].tokens) - shared <= limits.read_tokens]
    if together and shared:
        groups.append((together, shared))
    for number in written:
        if not (shared and number in together):
            length = len(written[number].tokens)
            groups.append(([number], max(1, length - limits.read_tokens)))
    return [
        _prepared(request, [(written[n], asked[n]) for n in numbers], shared_tokens, salt)
        for numbers, shared_tokens in groups
    ]


class _Writer:
    """Makes the canvases' prompts. The conversation is rendered and tokenised once for all."""

    def __init__(
        self,
        request: DecisionRequest,
        prompts: PromptBuilder,
        pictures: Mapping[int, Sequence[Picture]],
        limits: Ready,
    ) -> None:
        self._request, self._prompts, self._limits = request, prompts, limits
        self._pictures = pictures
        # The same conversation without a question: what a later request may have in common.
        self.bare = self._chat(ending_with_user(request.conversation), pictures[-1])
        _check_room(self.bare.tokens, limits, request.prompt_field)
        self._frame: tuple[Prompt, list[int], list[int]] | None = None

    def prompt(self, number: int, asked: Sequence[Asked], *, has_images: bool) -> Prompt:
        """Returns the prompt of a canvas."""
        text = None if has_images else self._text(asked)
        if text is not None and self._frame is not None:
            prompt, head, tail = self._frame
            return replace(prompt, tokens=[*head, *self._encoded(text), *tail])
        conversation = with_questions(self._request.conversation, asked)
        pictures = self._pictures[number if has_images else -1]
        try:
            whole = self._chat(conversation, pictures)
        except ContextLengthExceeded as error:  # although the conversation alone is not too long
            field = asked[0].question.field
            raise ContextLengthExceeded(error.message, param=field, tokens=error.tokens) from error
        if text is not None:
            self._frame = self._found_frame(whole, text)
        return whole

    def _found_frame(self, whole: Prompt, text: str) -> tuple[Prompt, list[int], list[int]] | None:
        """Returns what is before and behind the questions' tokens in each prompt.

        Returns None if the tokens of the questions depend on their surroundings.
        """
        bare, tokens = self.bare.tokens, self._encoded(text)
        before = _common(whole.tokens, bare)
        head, tail = bare[:before], bare[before:]
        return (whole, head, tail) if whole.tokens == [*head, *tokens, *tail] else None

    def _text(self, asked: Sequence[Asked]) -> str | None:
        """Returns the questions as they follow the conversation's last turn.

        Returns None if they end in white space, which templates cut off.
        """
        content = ending_with_user(self._request.conversation)[-1].content
        (followed,) = with_questions([Turn("user", "." if content else "")], asked)
        assert isinstance(followed.content, str)
        text = followed.content[1:] if content else followed.content
        return text if text == text.rstrip() else None

    def _encoded(self, text: str) -> list[int]:
        return self._prompts.vocabulary.encode_literally(text)

    def _chat(self, conversation: Conversation, pictures: Sequence[Picture]) -> Prompt:
        return self._prompts.chat(
            conversation,
            pictures=pictures,
            options=self._request.template_options,
            param=self._request.prompt_field,
            context_length=self._limits.context_length,
        )


def _order(question: Question, turn: int, turns: int) -> Order:
    count = len(question.options)
    if question.kind != "choice":
        return tuple(range(count))
    return orders(count, turns)[turn]


def _packed(
    asked: Sequence[Asked], joint: bool, prompts: PromptBuilder, limits: Ready
) -> Iterator[AskedCanvas]:
    """Yields canvases with as many questions as fit, in their order.

    A canvas' questions must fit a read's prompt too. One that does not is alone, and so is one with
    images, which are encoded before any read.
    """
    most_tokens = limits.read_tokens - min(_AROUND_TOKENS, limits.read_tokens // 2)
    room = limits.canvas_length - _end(prompts)
    lines = _Lines([], [])
    shown = 0  # tokens of the questions
    for each in asked:
        line_tokens = lines.next(each, prompts)
        size = _shown_tokens(each, prompts)
        fits = joint and not any(a.question.has_images for a in (*lines.asked, each))
        fits = fits and shown + size <= most_tokens
        if lines.asked and not (fits and len(lines.tokens) + len(line_tokens) <= room):
            yield lines.canvas(prompts, limits)
            lines, shown = _Lines([], []), 0
            line_tokens = lines.next(each, prompts)
        lines.asked.append(each)
        lines.tokens += line_tokens
        lines.ends.append(len(lines.tokens))
        shown += size
    if lines.asked:
        yield lines.canvas(prompts, limits)


def _shown_tokens(each: Asked, prompts: PromptBuilder) -> int:
    """Returns how many tokens the model is shown of a question, without its images."""
    parts = each.question.written(1, each.labels, each.order)
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    return len(prompts.vocabulary.encode_literally(text))


def _end(prompts: PromptBuilder) -> int:
    """Returns how many tokens end a canvas: one, or none if the tokenizer has no end of a turn."""
    return int(prompts.end_of_turn is not None)


@dataclass
class _Lines:
    """The lines of a canvas in the making. The last token of each is a label."""

    asked: list[Asked]
    tokens: list[int]
    ends: list[int] = field(default_factory=list)  # of the lines

    def next(self, asked: Asked, prompts: PromptBuilder) -> list[int]:
        """Returns the tokens of the next line, which answers this question."""
        text = line(len(self.asked) + 1, asked.labels.texts[0])
        return prompts.vocabulary.encode_literally(f"\n{text}" if self.asked else text)

    def canvas(self, prompts: PromptBuilder, limits: Ready) -> AskedCanvas:
        """Returns the canvas.

        Raises BadRequest if it has more tokens than a canvas, or if a label is no token of its own.
        """
        slots = [
            LabelSlot(end - 1, list(each.labels.tokens))
            for each, end in zip(self.asked, self.ends, strict=True)
        ]
        first = self.asked[0].question.field
        for each, slot in zip(self.asked, slots, strict=True):
            if self.tokens[slot.position] != slot.labels[0]:
                raise BadRequest(
                    f"{each.question.field}: the model's vocabulary has no label for its answer.",
                    param=each.question.field,
                    code="too_few_labels",
                )
        end = prompts.end_of_turn
        tokens = [*self.tokens, *([] if end is None else [end])]
        if len(tokens) > limits.canvas_length:
            raise BadRequest(
                f"{first}: its answer has {len(tokens)} tokens; a canvas has "
                f"{limits.canvas_length}.",
                param=first,
            )
        return AskedCanvas(self.asked, tokens, slots)


def _followed(content: Content, parts: Sequence[Part]) -> Content:
    """Returns the content of a turn with these parts behind it, on a line of their own."""
    lines: list[Part] = []
    for part in parts:  # each question begins with a text
        if isinstance(part, TextPart) and lines and isinstance(lines[-1], TextPart):
            lines[-1] = TextPart(f"{lines[-1].text}\n{part.text}")
        else:
            lines.append(part)
    if isinstance(content, str):
        before: list[Part] = [TextPart(content)] if content else []
    else:
        before = list(content)
    if before and isinstance(lines[0], TextPart):
        if all(isinstance(part, TextPart) for part in (*before, *lines)):
            texts = [part.text for part in (*before, *lines) if isinstance(part, TextPart)]
            return "\n".join(texts)
        if isinstance(before[-1], ImagePart):
            lines[0] = TextPart(f"\n{lines[0].text}")
    if not before and len(lines) == 1 and isinstance(lines[0], TextPart):
        return lines[0].text
    return (*before, *lines)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns how many tokens two prompts have in common at their beginning."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _check_room(tokens: Sequence[int], limits: Ready, param: str) -> None:
    if len(tokens) > limits.context_length:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limits.context_length} tokens. However, your "
            f"prompt is too long: it has {len(tokens)} tokens.",
            param=param,
            tokens=len(tokens),
        )


def _prepared(
    request: DecisionRequest,
    canvases: Sequence[tuple[Prompt, AskedCanvas]],
    shared: int,
    salt: str,
) -> Prepared:
    """Returns the worker's request for canvases whose prompts have `shared` tokens in common."""
    prompt = canvases[0][0]
    shared = max([shared, *(image.end for image in prompt.images)])
    reads = [
        Read(prompt=each.tokens[shared:], canvas=asked.canvas, slots=asked.slots)
        for each, asked in canvases
    ]
    longest = max(len(read.prompt) for read in reads)
    return Prepared(
        GenerateRequest(
            id=uuid.uuid4().hex,
            prompt=prompt.tokens[:shared],
            max_tokens=longest,
            sampling=Sampling(request.seed % 2**64, priority=request.priority),
            images=list(prompt.images),
            salt=salt,
            decision=Decision(reads, request.samples, request.steps),
        ),
        [asked for _, asked in canvases],
        shared + sum(len(read.prompt) for read in reads),
    )
