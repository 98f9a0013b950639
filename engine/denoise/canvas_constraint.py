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

import numpy as np

from engine.constraint.projection import FREE, Projector
from engine.tail.class_best import ClassBest

# Of two tokens with the same logit the draft's is preferred. In nats, and less than any real
# difference of two logits.
_TIE = np.float32(1e-6)


@dataclass
class CanvasConstraint:
    """The constraint of a canvas, whose first `positions` tokens can be part of the answer.

    `start` is the automaton's state before the canvas, and `tokens_left` the number of tokens that
    the answer may have behind it. `fixed` are the canvas' first tokens, as far as they are fixed.
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

    def allows(self, draft: Sequence[int]) -> bool:
        """Returns whether the canvas may stay as it is: its answer is complete or can still be."""
        automaton = self.projector.automaton
        states = self.projector.states(self.start, draft[: self.positions])
        last = states[-1] if states else self.start
        if last == automaton.end:
            return True
        return len(states) == self.positions and automaton.need[last] <= self.tokens_left

    def first_wrong(self, draft: Sequence[int]) -> int:
        """Returns the position of the first wrong token of a draft that is not allowed.

        It is the last position if only too many tokens would be needed behind the canvas.
        """
        states = self.projector.states(self.start, draft[: self.positions])
        return min(len(states), self.positions - 1)

    def corrected(self, draft: Sequence[int], best: ClassBest) -> list[int]:
        """Returns the likeliest canvas that the constraint allows, with the fixed tokens.

        `best` has the rows of the positions behind the fixed ones. Positions that do not matter
        keep the draft's tokens.
        """
        known = len(self.fixed)
        behind = np.asarray(draft[known : self.positions])
        rows = np.arange(len(behind))
        # The draft has the best tokens, whatever the rounding of another product says.
        kinds = self.projector.automaton.token_class[behind]
        regrets = np.maximum(best.regrets, _TIE)
        regrets[rows, kinds] = np.where(kinds > 0, 0, np.inf)
        tokens = best.tokens.copy()
        tokens[rows, kinds] = behind
        classes = self.projector.classes(self._state, regrets, self.tokens_left)
        chosen = np.where(classes == FREE, behind, tokens[rows, classes])
        return [*self.fixed, *chosen.tolist(), *draft[self.positions :]]

    def fix(self, draft: Sequence[int], corrected: Sequence[int]) -> None:
        """Fix the tokens up to the first correction, and those behind it that have no alternative.

        At least one more token is fixed.
        """
        at = next(
            i for i, pair in enumerate(zip(draft, corrected, strict=True)) if len({*pair}) > 1
        )
        self.fixed = list(corrected[: at + 1])
        only = self.projector.only_token(self._state)
        while only is not None and len(self.fixed) < self.positions:
            self.fixed.append(only)
            only = self.projector.only_token(self._state)

    @property
    def _state(self) -> int:
        """Returns the state behind the fixed tokens."""
        states = self.projector.states(self.start, self.fixed)
        return states[-1] if states else self.start
