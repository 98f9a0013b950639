"""Keep the keys and values of prefixes, and choose the prefix that a prompt can reuse.

The prefix that has the most tokens in common with the prompt is chosen. When the budget is
exceeded, the least recently used prefix is removed.

Plain Python: a snapshot is opaque here, except for its size and the shortest length that it can be
cut to. The tokens of images are replaced by keys of their content (see `Sequence.prefix_keys`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar


class Kept(Protocol):
    """A snapshot of one sequence's KV cache."""

    @property
    def nbytes(self) -> int:
        """Returns the bytes that the snapshot takes on the device."""

    @property
    def shortest(self) -> int:
        """Returns the smallest number of tokens, above 0, that the snapshot can be cut to."""


K = TypeVar("K", bound=Kept)


class Match(NamedTuple, Generic[K]):
    """The snapshot to restore for a prompt, and the number of tokens that need no encoding then."""

    kept: K
    length: int


@dataclass(frozen=True)
class _Entry(Generic[K]):
    tokens: list[int]
    kept: K


class PrefixCache(Generic[K]):
    """Snapshots of at most `budget_bytes` in total, with the tokens that they hold."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._entries: list[_Entry[K]] = []  # the least recently used first

    @property
    def nbytes(self) -> int:
        return sum(entry.kept.nbytes for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, prompt: Sequence[int]) -> Match[K] | None:
        """Returns the snapshot that saves most of this prompt, or None if none saves any token.

        The returned snapshot becomes the most recently used one.
        """
        best, length = None, 0
        for entry in self._entries:
            common = common_prefix(entry.tokens, prompt)
            if common > length and common >= entry.kept.shortest:
                best, length = entry, common
        if best is None:
            return None
        self._entries.remove(best)
        self._entries.append(best)
        return Match(best.kept, length)

    def make_room(self, tokens: Sequence[int], *, nbytes: int, shortest: int) -> bool:
        """Make room for a snapshot of these tokens. Returns whether it should be taken.

        It should not if a kept snapshot can restore all of these tokens, or if the new one is
        larger than the budget. Otherwise all snapshots that the new one makes superfluous are
        removed, and then the least recently used ones until the new one fits.
        """
        if nbytes > self._budget_bytes or any(
            entry.kept.shortest <= len(tokens) == common_prefix(entry.tokens, tokens)
            for entry in self._entries
        ):
            return False
        self._entries = [
            entry
            for entry in self._entries
            if common_prefix(entry.tokens, tokens) < len(entry.tokens)
            or entry.kept.shortest < shortest
        ]
        while self.nbytes + nbytes > self._budget_bytes:
            self._entries.pop(0)
        return True

    def add(self, tokens: list[int], kept: K) -> None:
        """Keep a snapshot of these tokens. `make_room` must have made room for it."""
        self._entries.append(_Entry(list(tokens), kept))

    def clear(self) -> None:
        self._entries.clear()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns the length of the longest common prefix of `a` and `b`."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices are compared in C; a loop over tokens would take milliseconds
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
