"""Which constraints the worker has, the same on both sides of the boundary."""

from collections import OrderedDict
from typing import Generic, TypeVar

from engine.messages import MOST_CONSTRAINTS

T = TypeVar("T")


class Kept(Generic[T]):
    """The constraints that were added or looked up last, by hash, up to MOST_CONSTRAINTS.

    The front end adds and looks up in the order in which it sends, and the worker in the order in
    which it receives. So both know the same constraints without a message about it.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, T] = OrderedDict()

    def get(self, name: str) -> T | None:
        """Returns what is kept under this hash, or None."""
        if name not in self._kept:
            return None
        self._kept.move_to_end(name)
        return self._kept[name]

    def add(self, name: str, value: T) -> None:
        self._kept[name] = value
        self._kept.move_to_end(name)
        if len(self._kept) > MOST_CONSTRAINTS:
            self._kept.popitem(last=False)
