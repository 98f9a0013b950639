"""Automata for the engine's tests, made of a few kinds of text by the shortest code there is."""

from collections.abc import Sequence

import numpy as np

from engine.constraint.automaton import UNREACHABLE, Automaton

_JUMP = -1  # the label of an edge that reads nothing


class Text:
    """A set of texts as a nondeterministic automaton over bytes."""

    def __init__(self, edges: list[tuple[int, int, int]], states: int) -> None:
        """Each edge is a state, a byte or _JUMP, and a state. State 0 starts, the last accepts."""
        self.edges, self.states = edges, states

    def __add__(self, other: "Text") -> "Text":
        shift = self.states
        moved = [(a + shift, byte, b + shift) for a, byte, b in other.edges]
        return Text([*self.edges, (shift - 1, _JUMP, shift), *moved], shift + other.states)

    def __or__(self, other: "Text") -> "Text":
        edges, states = [], 1
        for each in (self, other):
            edges.append((0, _JUMP, states))
            edges += [(a + states, byte, b + states) for a, byte, b in each.edges]
            states += each.states
        edges += [(self.states, _JUMP, states), (states - 1, _JUMP, states)]
        return Text(edges, states + 1)

    def many(self) -> "Text":
        """Returns any number of these texts, one behind the other."""
        edges = [(a + 1, byte, b + 1) for a, byte, b in self.edges]
        last = self.states + 1
        edges += [(0, _JUMP, 1), (0, _JUMP, last), (self.states, _JUMP, 1)]
        return Text([*edges, (self.states, _JUMP, last)], last + 1)


def text(literal: str) -> Text:
    data = literal.encode()
    return Text([(at, byte, at + 1) for at, byte in enumerate(data)], len(data) + 1)


def one_of(characters: str) -> Text:
    return Text([(0, byte, 1) for byte in characters.encode()], 2)


def automaton(allowed: Text, vocabulary: Sequence[bytes], ends: Sequence[int]) -> Automaton:
    """Returns the automaton of the allowed texts over tokens, which stand for these bytes.

    A token without bytes is never allowed. The tokens `ends` end an answer.
    """
    table, accepting = _deterministic(allowed)
    end = len(table)
    columns: dict[tuple[int, ...], int] = {(-1,) * end: 0}
    classes = []
    for token, data in enumerate(vocabulary):
        if token in ends:
            column = tuple(end if state in accepting else -1 for state in range(end))
        else:
            column = tuple(_read(table, state, data) if data else -1 for state in range(end))
        classes.append(columns.setdefault(column, len(columns)))
    next_state = np.full((end + 1, len(columns)), -1, np.int32)
    for column, number in columns.items():
        next_state[:end, number] = column
    return Automaton(np.array(classes, np.int32), next_state, needs(next_state, end), 0, end)


def needs(next_state: "np.ndarray", end: int) -> "np.ndarray":
    """Returns the least number of tokens from each state to the end."""
    need = np.full(len(next_state), UNREACHABLE, np.int64)
    need[end] = 0
    while True:
        reached = np.where(next_state < 0, UNREACHABLE, need[next_state] + 1).min(1)
        better = np.minimum(need, reached)
        if (better == need).all():
            return need.astype(np.int32)
        need = better


def _read(table: list[dict[int, int]], state: int, data: bytes) -> int:
    for byte in data:
        state = table[state].get(byte, -1)
        if state < 0:
            return -1
    return state


def _deterministic(allowed: Text) -> tuple[list[dict[int, int]], set[int]]:
    jumps: dict[int, list[int]] = {}
    reads: dict[int, list[tuple[int, int]]] = {}
    for a, byte, b in allowed.edges:
        if byte == _JUMP:
            jumps.setdefault(a, []).append(b)
        else:
            reads.setdefault(a, []).append((byte, b))

    def closed(states: set[int]) -> frozenset[int]:
        todo, found = list(states), set(states)
        while todo:
            new = [b for b in jumps.get(todo.pop(), ()) if b not in found]
            found.update(new)
            todo += new
        return frozenset(found)

    numbers = {closed({0}): 0}
    table: list[dict[int, int]] = []
    while len(table) < len(numbers):
        states = list(numbers)[len(table)]
        moves: dict[int, set[int]] = {}
        for state in states:
            for byte, b in reads.get(state, ()):
                moves.setdefault(byte, set()).add(b)
        row = {byte: closed(found) for byte, found in moves.items()}
        table.append({byte: numbers.setdefault(to, len(numbers)) for byte, to in row.items()})
    return table, {number for states, number in numbers.items() if allowed.states - 1 in states}
