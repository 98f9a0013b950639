"""Which prefixes' keys and values are kept, which of them serves a prompt best, and which one goes.

Plain Python: what is kept is opaque here, but for its size and for how far back it can be cut.
An image's tokens come as keys of what it shows, see `Sequence.prefix_keys`.
The longest common prefix of token ids wins; beyond the budget the least recently used goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar


class Kept(Protocol):
    """A snapshot of one sequence's KV cache."""

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""

    @property
    def shortest(self) -> int:
        """The least number of tokens to which it can be cut, other than none."""


K = TypeVar("K", bound=Kept)


class Match(NamedTuple, Generic[K]):
    """What to restore for a prompt, and how many of its tokens that saves."""

    kept: K
    length: int


@dataclass(frozen=True)
class _Entry(Generic[K]):
    tokens: list[int]
    kept: K


class PrefixCache(Generic[K]):
    """Snapshots by the tokens that they hold, at most `budget_bytes` of them."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._entries: list[_Entry[K]] = []  # the most recently used last

    @property
    def nbytes(self) -> int:
        return sum(entry.kept.nbytes for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, prompt: Sequence[int]) -> Match[K] | None:
        """The snapshot that saves most of this prompt, if any does. This counts as a use of it."""
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
        """Whether a snapshot of these tokens is worth taking; if so, there is room for it then.

        It is not if all of them can be restored already, or if it is larger than the budget.
        What it would make superfluous goes, then what was not used for longest.
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
        """Keep a snapshot of these tokens, for which `make_room` has made room."""
        self._entries.append(_Entry(list(tokens), kept))

    def clear(self) -> None:
        self._entries.clear()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens the two have in common at their beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # comparing slices is C; a loop over tokens would take milliseconds
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
