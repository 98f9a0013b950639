"""The places in the queue, and which of them are kept for better priorities. It does no I/O.

Each open answer has a place. Answers of a worse priority can't take the last places, so a person's
request is admitted however many an agent has sent. A place is reserved when a request is admitted,
and belongs to an open answer from when the answer is begun until the worker has ended it.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

_KEPT = 4  # one place in so many is kept for the next better priority, and at least one


class Shortage(NamedTuple):
    """Why answers are refused: `taken` of `limit` places are taken, `missing` more are needed."""

    taken: int
    limit: int
    missing: int


class Places:
    """`most` places. `priorities` are those of the API keys, of which a lower number is better.

    Each priority in `priorities` divides the requests: worse ones together have fewer places.
    Without keys, requests with a priority above 0 have fewer places than others.
    """

    def __init__(self, most: int, priorities: Iterable[int] = ()) -> None:
        self._most = most
        self._levels = set(priorities) or {0}
        self._reserved = Counter[int]()  # by priority

    def limit(self, priority: int) -> int:
        """Returns how many answers of this priority and of worse ones may be open together."""
        limit = self._most
        for _ in range(self._level(priority)):
            limit = max(1, limit - max(1, limit // _KEPT))
        return limit

    def _level(self, priority: int) -> int:
        """Returns how many of the dividing priorities are better. Equal levels share places."""
        return sum(better < priority for better in self._levels)

    def reserve(self, count: int, priority: int, opened: Iterable[int]) -> Shortage | None:
        """Reserve places for `count` answers, or return why there are too few.

        `opened` has the priorities of all open answers.
        """
        level = self._level(priority)
        levels = [self._level(each) for each in (*self._reserved.elements(), *opened)]
        not_better = sum(each >= level for each in levels)
        for taken, limit in ((len(levels), self._most), (not_better, self.limit(priority))):
            if taken + count > limit:
                return Shortage(taken, limit, taken + count - limit)
        self._reserved[priority] += count
        return None

    def release(self, count: int, priority: int) -> None:
        """Give up reserved places, because their answers are open now or will never be."""
        self._reserved[priority] -= count
