"""A constraint by a grammar on one canvas.

A grammar tells which tokens may follow a beginning, and nothing about what comes later. So one
token is corrected at a time: the first wrong one becomes the likeliest that may stand there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.constraint.rules import GrammarRules
from engine.denoise.canvas_constraint import CanvasLogits


@dataclass
class FrontierConstraint:
    """The constraint of a canvas behind the tokens `before`, all of which are the answer's.

    The canvas' first `positions` tokens can be part of the answer, and `fixed` are its first
    tokens, as far as they are fixed.
    """

    rules: GrammarRules
    before: list[int]
    positions: int
    fixed: list[int] = field(default_factory=list)

    def right_tokens(self, draft: Sequence[int]) -> int:
        """Returns how many of the draft's first tokens an allowed answer can begin with.

        They are all of the draft's, but no more than `positions`, if it may stay as it is. Raises
        ValueError if the grammar has become too complex.
        """
        right, complete = self.rules.read([*self.before, *draft[: self.positions]])
        return min(len(draft), self.positions) if complete else right - len(self.before)

    def corrected(self, draft: Sequence[int], kept: int, logits: CanvasLogits) -> list[int]:
        """Returns the draft with the likeliest allowed token behind its first `kept` ones.

        Raises ValueError if the grammar has become too complex.
        """
        mask = self.rules.mask([*self.before, *draft[:kept]])
        return [*draft[:kept], logits.best(kept, mask), *draft[kept + 1 :]]

    def fix(self, corrected: Sequence[int], count: int) -> None:
        """Fix the first `count` tokens of a corrected canvas."""
        self.fixed = list(corrected[:count])
