"""A predicted answer, and the place in it that an answer has reached.

A request may predict its answer, for example with the text that is to be edited. The canvas of a
block then starts from the tokens that follow in the prediction, instead of from noise. After each
block the place in the prediction is looked for again, because the answer may have inserted,
removed, replaced or moved something.

The place is the end of the cheapest path through the prediction, by Viterbi's algorithm. With each
token of the answer a path takes the prediction's next token, which costs something if it is another
one, or stays where it is, or jumps to where the token is. So a token takes one loop over the
prediction. The place depends on the tokens alone and not on where blocks begin, so an answer that
another process continues has the same one.

Letter: P tokens of the prediction. A place is the number of its tokens in front of it, 0 to P.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.constraint.compiled import compiled

# What a path pays for a token of the answer. An inserted token costs a little more than a replaced
# one, so that a path that could be either goes on behind the replaced token. A jump costs as much
# as the few tokens that must agree behind it before it is believed.
_REPLACED = 1.0
_INSERTED = 1.1
_JUMP = 3.0

_RECENT_TOKENS = 16
_MOST_RECENT_COST = 0.5  # for each of the recent tokens; the answer has left the prediction above


@dataclass
class _Paths:
    """The cheapest paths for the first tokens of an answer."""

    costs: NDArray[np.float64]  # [P + 1], of the path that ends at each place
    agreed: NDArray[np.int64]  # [P + 1], the tokens that this path takes from the prediction
    least: NDArray[np.float64]  # the least cost behind each recent token, and before all of them

    @classmethod
    def start(cls, tokens: int) -> "_Paths":
        """Returns the paths in a prediction of so many tokens before the answer begins."""
        costs = np.full(tokens + 1, _JUMP)
        costs[0] = 0.0
        return cls(costs, np.zeros(tokens + 1, dtype=np.int64), np.zeros(1))

    @property
    def place(self) -> int:
        """Returns the place at which the cheapest path ends."""
        return int(self.costs.argmin())

    @property
    def lost(self) -> bool:
        """Returns whether the answer has left the prediction."""
        recent = self.least[-1] - self.least[0]
        return bool(recent > _MOST_RECENT_COST * (len(self.least) - 1))

    def behind(self, tokens: NDArray[np.int64], answer: Sequence[int]) -> "_Paths":
        """Returns the paths for an answer that goes on with `answer`. `tokens` are predicted."""
        costs, agreed = self.costs.copy(), self.agreed.copy()
        least = np.empty(len(answer))
        _follow(tokens, np.array(answer, dtype=np.int64), costs, agreed, least)
        return _Paths(costs, agreed, np.concatenate([self.least, least])[-1 - _RECENT_TOKENS :])


class PredictedAnswer:
    """A prediction, with the paths of the answer that it was last asked about."""

    def __init__(self, tokens: Sequence[int], behind: int | None = None) -> None:
        """Begin in front of the prediction's `tokens`.

        With `behind`, only what the answer has behind the last such token is looked for.
        """
        self._tokens = np.array(tokens, dtype=np.int64)
        self._behind = behind
        self._read: list[int] = []
        self._paths = _Paths.start(len(tokens))

    def following(self, answer: Sequence[int], ahead: Sequence[int] = ()) -> list[int]:
        """Returns the predicted tokens that follow `answer` and then `ahead`.

        Returns an empty list if the answer has left the prediction or not yet come to it.
        """
        part = self._part([*answer, *ahead])
        if part is None:
            return []
        if ahead:  # it may turn out otherwise, so only the answer's paths are kept
            self._read_on(self._part(answer) or [])
            paths = self._paths_of(part)
        else:
            paths = self._read_on(part)
        following: list[int] = [] if paths.lost else self._tokens[paths.place :].tolist()
        return following

    def agreed(self, answer: Sequence[int]) -> int:
        """Returns how many tokens of the prediction the answer has."""
        part = self._part(answer)
        if part is None:
            return 0
        paths = self._read_on(part)
        # Where a path jumps back, it takes tokens twice.
        return min(int(paths.agreed[paths.place]), len(self._tokens))

    def _part(self, answer: Sequence[int]) -> list[int] | None:
        """Returns the part of the answer that is predicted, or None if that has not begun."""
        if self._behind is None:
            return list(answer)
        if self._behind not in answer:
            return None
        return list(answer[len(answer) - answer[::-1].index(self._behind) :])

    def _paths_of(self, part: list[int]) -> _Paths:
        """Returns the paths of `part`, from those that are kept if it continues their answer."""
        if part[: len(self._read)] == self._read:
            return self._paths.behind(self._tokens, part[len(self._read) :])
        return _Paths.start(len(self._tokens)).behind(self._tokens, part)

    def _read_on(self, part: list[int]) -> _Paths:
        """Returns the paths of `part`, and keeps them for an answer that continues it."""
        self._paths, self._read = self._paths_of(part), part
        return self._paths


@compiled
def _follow(
    tokens: NDArray[np.int64],
    answer: NDArray[np.int64],
    costs: NDArray[np.float64],
    agreed: NDArray[np.int64],
    least: NDArray[np.float64],
) -> None:
    """Continue the paths through the predicted `tokens` by those of `answer`.

    Changes the paths' `costs` and `agreed`, and writes the least cost behind each token of the
    answer to `least`.
    """
    for index in range(len(answer)):
        token = answer[index]
        place = costs.argmin()
        jumped, jumped_agreed = costs[place] + _JUMP, agreed[place]
        for end in range(len(tokens), -1, -1):  # downwards, because each reads the one below
            cost, count = costs[end] + _INSERTED, agreed[end]
            if end > 0:
                agrees = tokens[end - 1] == token
                paid = 0.0 if agrees else _REPLACED
                if costs[end - 1] + paid <= cost:
                    cost, count = costs[end - 1] + paid, agreed[end - 1] + agrees
                if agrees and jumped < cost:
                    cost, count = jumped, jumped_agreed + 1
            costs[end], agreed[end] = cost, count
        least[index] = costs.min()
