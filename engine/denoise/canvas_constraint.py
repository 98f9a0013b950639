"""A constraint on one canvas: which of its tokens are fixed, and how a draft is corrected.

A draft that the constraint allows is left alone. When one is corrected, the tokens up to the first
correction are fixed for the block's next steps, so that the model itself fits the other tokens to
them. What the last step leaves wrong is corrected altogether.

The constraint of an answer is one automaton for all of its blocks. Each block starts in the state
that the answer so far leads to, and ends in a state from which the remaining tokens are enough to
reach the end. So an answer whose `max_tokens` are enough is always complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.constraint.projection import FREE, Projector
from engine.tail.class_best import ClassBest

# Of two tokens with the same logit the draft's is preferred. In nats, and less than any real
# difference of two logits.
_TIE = np.float32(1e-6)


class CanvasLogits(Protocol):
    """The logits of a canvas' positions."""

    def best_of_classes(self, projector: Projector, positions: slice) -> ClassBest:
        """Returns the best token of each class at these positions."""

    def best(self, position: int, allowed: NDArray[np.bool_]) -> int:
        """Returns the best of the allowed [V] tokens at a position."""


@dataclass
class CanvasConstraint:
    """The constraint of a canvas, whose first `positions` tokens can be part of the answer.

    `start` is the automaton's state before the canvas, and `tokens_left` the number of tokens that
    the answer may have behind it. `fixed` are the canvas' first tokens, as far as they are fixed.

    A draft that is shorter than the canvas is a block that ends there, and leaves more tokens.
    """

    projector: Projector
    start: int
    positions: int
    tokens_left: int
    fixed: list[int] = field(default_factory=list)

    @classmethod
    def behind(
        cls, projector: Projector, answer: Sequence[int], room: int, width: int
    ) -> "CanvasConstraint":
        """Returns the constraint of a canvas behind the tokens of `answer`.

        The canvas has `width` positions, and `room` more tokens are allowed in the answer. Raises
        ValueError if the answer is not a beginning that the constraint allows.
        """
        positions = min(width, room)
        states = projector.states(projector.automaton.start, answer)
        if len(states) < len(answer):
            raise ValueError("the answer so far breaks its constraint")
        start = states[-1] if states else projector.automaton.start
        return cls(projector, start, positions, room - positions)

    def right_tokens(self, draft: Sequence[int]) -> int:
        """Returns how many of the draft's first tokens an allowed answer can begin with.

        They are all of the draft's, but no more than `positions`, if it may stay as it is.
        """
        automaton = self.projector.automaton
        states = self.projector.states(self.start, draft[: self.positions])
        if states and states[-1] == automaton.end:
            return min(len(draft), self.positions)
        # Completing the answer takes the fewer tokens the fewer of the draft's tokens are kept.
        for right, state in enumerate(states):
            if automaton.need[state] > self.positions - 1 - right + self.tokens_left:
                return right
        return len(states)

    def corrected(self, draft: Sequence[int], kept: int, logits: CanvasLogits) -> list[int]:
        """Returns the likeliest allowed canvas that begins with the draft's first `kept` tokens.

        Positions that do not matter keep the draft's tokens.
        """
        positions = min(len(draft), self.positions)
        tokens_left = self.tokens_left + self.positions - positions
        best = logits.best_of_classes(self.projector, slice(kept, positions))
        behind = np.asarray(draft[kept:positions])
        rows = np.arange(len(behind))
        # The draft has the best tokens, whatever the rounding of another product says.
        kinds = self.projector.automaton.token_class[behind]
        regrets = np.maximum(best.regrets, _TIE)
        regrets[rows, kinds] = np.where(kinds > 0, 0, np.inf)
        tokens = best.tokens.copy()
        tokens[rows, kinds] = behind
        state = self._state(draft[:kept])
        classes = self.projector.classes(state, regrets, tokens_left)
        chosen = np.where(classes == FREE, behind, tokens[rows, classes])
        return [*draft[:kept], *chosen.tolist(), *draft[positions:]]

    def fix(self, corrected: Sequence[int], count: int) -> None:
        """Fix the first `count` tokens of a corrected canvas.

        Tokens behind them that have no alternative are fixed too.
        """
        self.fixed = list(corrected[:count])
        while len(self.fixed) < self.positions:
            only = self.projector.only_token(self._state(self.fixed))
            if only is None:
                return
            self.fixed.append(only)

    def _state(self, tokens: Sequence[int]) -> int:
        """Returns the state behind the canvas' first tokens, which must be allowed."""
        states = self.projector.states(self.start, tokens)
        return states[-1] if states else self.start
