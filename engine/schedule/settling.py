"""When the positions of a canvas got the tokens that they keep. Plain Python.

It is followed step by step, because the worker keeps no earlier draft. The figures are for people
who watch a block: no decision depends on them.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Settling:
    """The last draft, and for each of its positions the step that gave it its present token."""

    draft: tuple[int, ...] = ()
    since: tuple[int, ...] = ()

    def after(self, step: int, draft: list[int]) -> "Settling":
        """Returns the state after one more denoising step, the `step`-th of the block.

        A draft may be shorter or longer than the one before it, as where a thought is closed.
        """
        each = zip(self.draft, draft, self.since, strict=False)
        since = [since if old == new else step for old, new, since in each]
        return Settling(tuple(draft), (*since, *[step] * (len(draft) - len(since))))

    def counts(self, positions: int, steps: int) -> list[int]:
        """Returns for each of the `steps` how many of the first positions were final after it."""
        changes = Counter(self.since[:positions])
        return list(accumulate(changes[step] for step in range(1, steps + 1)))
