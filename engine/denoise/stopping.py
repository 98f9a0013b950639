"""Stopping rules: small frozen objects that say whether a block is final. Plain Python.

A rule reads the figures that a denoising step reports to the host anyway. So it needs no launch on
the device and no wait for it, and canvases with different rules share one pass. Rules compose with
`AllOf` and `AnyOf`. The reference is `StableAndConfidentStoppingCriteria` in transformers'
`models/diffusion_gemma/generation_diffusion_gemma.py`: `stopping_rule("exact", …)` is the same.

No rule limits the number of steps: the caller ends a block at its last step.

Letter: C positions of the canvas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum
from typing import Protocol

from engine.config import Quality
from engine.messages import StopReason

# Factor on a rule's bound of the entropy, up to which the next step may well finish the block.
# Speculations made and won on the demo model's answers of several blocks: 16 and 16 with a factor
# of 1, 22 and 21 with 5, 28 and 21 with 20, 32 and 21 with 100.
_NEARLY = 5.0


@dataclass(frozen=True)
class StepFigures:
    """The figures of a canvas after one of its denoising steps."""

    draft: Sequence[int]  # [C] the argmax canvas
    steps: int  # the canvas' steps so far, with this one
    stable_steps: int  # the number of steps for which the draft has stayed the same
    entropies: Sequence[float]  # [C] nats
    ends: frozenset[int] = frozenset()  # the tokens that end the answer

    # Each is computed at most once, and only for a rule that asks: the device waits meanwhile.
    @cached_property
    def mean_entropy(self) -> float:
        return fsum(self.entropies) / len(self.entropies)

    @cached_property
    def highest_entropy(self) -> float:
        """Returns the highest entropy of a position up to the first end token and with it."""
        return max(self.entropies[: first_end(self.draft, self.ends)])


class Rule(Protocol):
    """A condition under which a block is final."""

    def reason(self, figures: StepFigures) -> StopReason | None:
        """Returns why the block is final, or None if it is not."""

    def nearly(self, figures: StepFigures) -> bool:
        """Returns whether the next step may well finish the block. Speculation needs it."""


@dataclass(frozen=True)
class Stable:
    """The draft has stayed the same for so many steps."""

    steps: int

    def reason(self, figures: StepFigures) -> StopReason | None:
        return "stable" if figures.stable_steps >= self.steps else None

    def nearly(self, figures: StepFigures) -> bool:
        return figures.stable_steps + 1 >= self.steps


@dataclass(frozen=True)
class Confident:
    """The mean entropy of all positions is below a bound, and the canvas has had enough steps."""

    nats: float
    least_steps: int = 0

    def reason(self, figures: StepFigures) -> StopReason | None:
        enough = figures.steps >= self.least_steps
        return "confident" if enough and figures.mean_entropy < self.nats else None

    def nearly(self, figures: StepFigures) -> bool:
        enough = figures.steps + 1 >= self.least_steps
        return enough and figures.mean_entropy < _NEARLY * self.nats


@dataclass(frozen=True)
class Certain:
    """Each position has an entropy below a bound, except those behind the first end token."""

    nats: float

    def reason(self, figures: StepFigures) -> StopReason | None:
        return "certain" if figures.highest_entropy < self.nats else None

    def nearly(self, figures: StepFigures) -> bool:
        return figures.highest_entropy < _NEARLY * self.nats


@dataclass(frozen=True)
class AllOf:
    """All of these rules hold. The reason is that of the last one."""

    rules: tuple[Rule, ...]

    def reason(self, figures: StepFigures) -> StopReason | None:
        reason = None
        for rule in self.rules:
            reason = rule.reason(figures)
            if reason is None:
                return None
        return reason

    def nearly(self, figures: StepFigures) -> bool:
        return all(rule.nearly(figures) for rule in self.rules)


@dataclass(frozen=True)
class AnyOf:
    """One of these rules holds. The reason is that of the first one that does."""

    rules: tuple[Rule, ...]

    def reason(self, figures: StepFigures) -> StopReason | None:
        reasons = (rule.reason(figures) for rule in self.rules)
        return next((reason for reason in reasons if reason is not None), None)

    def nearly(self, figures: StepFigures) -> bool:
        return any(rule.nearly(figures) for rule in self.rules)


def stopping_rule(quality: Quality, *, stability_steps: int, confidence_nats: float) -> Rule:
    """Returns the rule of a quality, given the numbers of the checkpoint or the request.

    The other qualities stop wherever "exact" does, or earlier. Many positions that are a little
    unsure can hold the mean above its bound although each is `Certain`. A few positions with two
    good tokens can do so too: then the draft is `Stable`, or the two tokens take turns, for which
    "fast" does not wait. docs/quality.md says what the qualities cost.
    """
    exact = AllOf((Stable(stability_steps), Confident(confidence_nats)))
    match quality:
        case "exact":
            return exact
        case "balanced":
            return AnyOf((exact, Certain(0.1), AllOf((Confident(0.1), Stable(4)))))
        case "fast":
            return AnyOf((exact, Certain(0.3), Stable(2), Confident(0.01, least_steps=8)))


def first_end(draft: Sequence[int], ends: frozenset[int]) -> int:
    """Returns how many positions a draft has up to its first end token and with it, or all."""
    if ends.isdisjoint(draft):
        return len(draft)
    return next(index + 1 for index, token in enumerate(draft) if token in ends)
