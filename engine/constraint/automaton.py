"""A constraint as numbers: classes of tokens, and a table of states.

The front end compiles it from a schema, a regular expression or tools. The worker applies it to
canvases and knows nothing of text.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

UNREACHABLE = 2**31 - 1  # in `Automaton.need`: the end cannot be reached from this state


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of an automaton: its numbers, and its arrays as little-endian int32."""

    states: int
    classes: int
    start: int
    end: int
    token_class: bytes
    next_state: bytes
    need: bytes


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton that reads tokens.

    `token_class` (int32 [V]) holds the class of each token. Tokens of one class lead from every
    state to the same state. Tokens of class 0 are never allowed.

    `next_state` (int32 [S, C]) holds the state after a token of a class, or -1 if no such token may
    follow. Column 0 is all -1.

    `need` (int32 [S]) holds the least number of tokens that lead from a state to `end`, the end
    token included, or UNREACHABLE. It is 0 at `end` and at least 1 elsewhere.

    `start` is the state before the first token. `end` is the state after an end token: what
    follows is no longer part of the answer, so it may be anything and costs nothing. Row `end` of
    `next_state` is all -1. End tokens have classes of their own, which lead to `end` from the
    states where the answer may end. No other class leads to `end`.
    """

    token_class: NDArray[np.int32]
    next_state: NDArray[np.int32]
    need: NDArray[np.int32]
    start: int
    end: int

    @property
    def states(self) -> int:
        """Returns S, the number of states."""
        return int(self.next_state.shape[0])

    @property
    def classes(self) -> int:
        """Returns C, the number of classes, including class 0."""
        return int(self.next_state.shape[1])

    @property
    def least_tokens(self) -> int:
        """Returns the length of the shortest answer in tokens, its end token included."""
        return int(self.need[self.start])

    @cached_property
    def hash(self) -> str:
        """Returns a name for the automaton that only equal automata share."""
        return hashlib.blake2b(self.to_bytes(), digest_size=16).hexdigest()

    def to_bytes(self) -> bytes:
        """Returns the automaton as bytes for `from_bytes`."""
        return msgspec.msgpack.encode(
            _Packed(
                self.states,
                self.classes,
                self.start,
                self.end,
                _int32_bytes(self.token_class),
                _int32_bytes(self.next_state),
                _int32_bytes(self.need),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Returns the automaton whose `to_bytes` returned `data`. Its arrays are read-only.

        Raises msgspec.DecodeError, or ValueError, if `data` is not an automaton.
        """
        packed = msgspec.msgpack.decode(data, type=_Packed)
        token_class = np.frombuffer(packed.token_class, "<i4")
        next_state = np.frombuffer(packed.next_state, "<i4").reshape(packed.states, packed.classes)
        need = np.frombuffer(packed.need, "<i4")
        automaton = cls(token_class, next_state, need, packed.start, packed.end)
        automaton.check()
        return automaton

    def check(self) -> None:
        """Raises ValueError if a state or a class does not exist, or a rule above is broken."""
        states, classes = self.next_state.shape
        if self.need.shape != (states,):
            raise ValueError(f"need has the shape {self.need.shape}, not ({states},)")
        if not (0 <= self.start < states and 0 <= self.end < states):
            raise ValueError(f"start {self.start} or end {self.end} is not one of {states} states")
        if not _within(self.token_class, 0, classes):
            raise ValueError(f"token_class holds a class that is not one of {classes}")
        if not _within(self.next_state, -1, states):
            raise ValueError(f"next_state holds a state that is not one of {states}")
        if (self.next_state[:, 0] != -1).any() or (self.next_state[self.end] != -1).any():
            raise ValueError("something is allowed in class 0 or behind the end")
        if self.need[self.end] != 0 or (np.delete(self.need, self.end) < 1).any():
            raise ValueError("need is not 0 at the end alone")


def _int32_bytes(array: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array, "<i4").tobytes()


def _within(array: NDArray[np.int32], least: int, bound: int) -> bool:
    return array.size > 0 and bool(array.min() >= least and array.max() < bound)
