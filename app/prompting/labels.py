"""The labels with which the model answers decisions: tokens that are one answer each.

An answer is a line such as `3: B`. A label is usable if it is one token there. Which ones are
depends on the vocabulary, so they are looked for once at the start.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from string import ascii_lowercase, ascii_uppercase

from app.prompting.vocabulary import Vocabulary

YES, NO = "yes", "no"
_ANSWERS = ((YES, NO), ("Yes", "No"), ("Y", "N"))  # the first pair of which both are one token
_NUMBERS = range(1000)


@dataclass(frozen=True)
class LabelSet:
    """Labels that may stand in each other's place: their texts, and their tokens."""

    texts: tuple[str, ...]
    tokens: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Labels:
    """A vocabulary's labels. A set is smaller, or empty, where the vocabulary lacks some."""

    answers: LabelSet  # yes and no, or the like
    digits: LabelSet  # 0 to 9, as far as they follow one another
    letters: LabelSet  # A to Z first, then what else is one token

    @classmethod
    def find(cls, vocabulary: Vocabulary, vocab_size: int) -> "Labels":
        """Returns the labels of a model with so many tokens."""
        answers = (_usable(pair, vocabulary, vocab_size) for pair in _ANSWERS)
        digits = _usable(map(str, range(10)), vocabulary, vocab_size)
        gap = next((i for i, text in enumerate(digits.texts) if text != str(i)), len(digits))
        return cls(
            answers=next((pair for pair in answers if len(pair) == 2), LabelSet((), ())),
            digits=LabelSet(digits.texts[:gap], digits.tokens[:gap]),
            letters=_usable(_letters(), vocabulary, vocab_size),
        )


def line(number: int, label: str) -> str:
    """Returns the line that answers a question with this number."""
    return f"{number}: {label}"


def _letters() -> Iterator[str]:
    """Yields what may be the label of a choice, in the order in which labels are taken."""
    yield from ascii_uppercase
    yield from map("".join, product(ascii_uppercase, repeat=2))
    yield from ascii_lowercase
    yield from map(str, _NUMBERS)


def _usable(texts: Iterable[str], vocabulary: Vocabulary, vocab_size: int) -> LabelSet:
    """Returns those of the texts that are one token in a line, with the same tokens before it.

    A tokenizer may put the space into the label's token or leave it in front. The form that most
    of the first texts have is taken, and of all texts where that is equal.
    """
    texts = list(texts)
    first = set(texts[: len(ascii_uppercase)])
    by_head: dict[tuple[int, ...], dict[int, str]] = {}
    for text in texts:
        *head, last = vocabulary.encode_literally(line(1, text))
        is_whole = vocabulary.byte(last) is None and vocabulary.word(last).strip() == text
        if is_whole and last < vocab_size:
            by_head.setdefault(tuple(head), {})[last] = text
    labels = max(
        by_head.values(),
        key=lambda found: (len(first.intersection(found.values())), len(found)),
        default={},
    )
    return LabelSet(tuple(labels.values()), tuple(labels))
