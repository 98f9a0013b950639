"""From an automaton that reads bytes and control tokens to one that reads tokens.

Each token is a function from states to states. A walk of the trie composes these functions, level
by level: the function of a node is that of its parent, followed by a byte. Equal functions are kept
once, so a walk costs one look-up for each node, and one composition for each pair of a function and
a byte. There are a few thousand of these where there are half a million nodes. Tokens with equal
functions are one class.

Lengths that are counted are no states of the machine. A function says instead how far it counts:
in the region where it starts, how much it adds, and what it has counted when it leaves the region.
Only the states between tokens are then multiplied by the counts. Where that would make too many
states, counts are rounded up between tokens: a text may then have to end before its limit, and
never passes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.constraint.limits import MOST_ENTRIES, MOST_FUNCTIONS, Effort, TooLargeError
from app.constraint.machines import Machine, Region
from app.constraint.tokens import TokenTrie
from engine.constraint.automaton import UNREACHABLE, Automaton

FIRST_CONTROL = 256  # the symbol of the control token 0

_MOST_COUNTS = 1024  # states between two characters of all counted texts together
_MOST_TOKEN_STATES = 10_000
_UNTIDY = 4  # a table may be so many times larger before useless states are removed
_COARSE = 16  # inside of a character, counts are rounded to so many times as much
_EXACT = 64  # counts of texts that are limited to so many characters are never rounded coarsely
_NO_BOUND = 2**30
_STAYS = -1  # in a function's `left`: it has not left the region where it started
_CHUNK = 64  # functions or classes that are computed at once

Array = NDArray[np.int32]
Mask = NDArray[np.bool_]


def automaton(machine: Machine, trie: TokenTrie, ends: Sequence[int], effort: Effort) -> Automaton:
    """Returns the automaton over tokens. Any of the tokens `ends` ends the answer.

    Raises TooLargeError.
    """
    table = _table(machine)
    functions = _Functions(table, effort)
    token_function = _walk(trie, functions)
    used = np.flatnonzero(np.bincount(token_function)).astype(np.int32)
    token_class = np.searchsorted(used, token_function)
    states = _TokenStates(table, machine.regions)
    if states.count * len(used) > _UNTIDY * MOST_ENTRIES:
        raise TooLargeError(f"its table would have more than {MOST_ENTRIES} entries")
    after = states.after(functions, used)
    return _tidied(after, states, token_class.astype(np.int32), ends, effort)


@dataclass(frozen=True, eq=False)
class _Table:
    """A machine in arrays. State S stands for "dead", region R for "no region"."""

    after: NDArray[np.int16]  # [S + 1, B], for classes of symbols
    cuts: Array  # where intervals of symbols begin
    cut_class: Array  # the class of the symbols in each interval
    accepting: Mask  # [S]
    region: Array  # [S + 1]
    between: Mask  # [S + 1]
    least: Array  # [R + 1]
    most: Array  # [R + 1]

    @property
    def dead(self) -> int:
        return len(self.region) - 1

    @property
    def regions(self) -> int:
        return len(self.least) - 1

    def symbol_class(self, symbols: Array) -> Array:
        return np.asarray(self.cut_class[np.searchsorted(self.cuts, symbols, "right") - 1])


def _table(machine: Machine) -> _Table:
    states, regions = len(machine.edges), len(machine.regions)
    bounds = {0, FIRST_CONTROL}
    for row in machine.edges:
        for low, high, _ in row:
            bounds.update((low, high + 1))
    cuts = sorted(bounds)
    number = {cut: index for index, cut in enumerate(cuts)}
    after = np.full((states + 1, len(cuts)), states, np.int16)
    for state, row in enumerate(machine.edges):
        for low, high, target in row:
            after[state, number[low] : number[high + 1]] = target
    columns, cut_class = _same_columns(after)
    after = after[:, columns]
    bounds_of = [(each.least, _most(each)) for each in machine.regions]
    labels = [
        (accepts, tag and (*bounds_of[tag.region], tag.between))
        for accepts, tag in zip(machine.accepting, machine.tags, strict=True)
    ]
    kept, renumbered = _same_states(after, labels, machine)
    tags = [machine.tags[state] for state in kept]
    state_after = np.array([*renumbered, len(kept)], np.int16)
    return _Table(
        state_after[after[[*kept, states]]],
        np.array(cuts, np.int32),
        cut_class.astype(np.int32),
        np.array(machine.accepting)[kept],
        np.array([*(regions if tag is None else tag.region for tag in tags), regions], np.int32),
        np.array([*(tag is not None and tag.between for tag in tags), False]),
        np.array([*(each.least for each in machine.regions), 0], np.int32),
        np.array([*(_most(each) for each in machine.regions), _NO_BOUND], np.int32),
    )


def _same_states(
    after: NDArray[np.int16], labels: list[Any], machine: Machine
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the first of each of the states that differ, and for each state which it equals.

    States are equal if their labels are, and all that follows them. The start stays the first.
    """
    edges = {(state, edge[2]) for state, row in enumerate(machine.edges) for edge in row}
    source, target = np.array(sorted(edges) or np.empty((0, 2)), np.int64).T
    distance = _distances(len(labels), np.flatnonzero(machine.accepting), target, source)
    numbers: dict[Any, int] = {}
    part = np.array(
        [
            numbers.setdefault(label, len(numbers))
            for label in zip(distance.tolist(), labels, strict=True)
        ],
        np.int64,
    )
    weights = _weights(after.shape[1] + 1)
    while True:
        signature = np.append(part, -1)[after[:-1]] @ weights[:-1] + part * weights[-1]
        first, finer = np.unique(signature, return_index=True, return_inverse=True)[1:]
        finer = finer.reshape(-1)
        if len(first) == part.max() + 1:
            break
        part = finer
    order = np.argsort(first)
    number = np.empty(len(first), np.int64)
    number[order] = np.arange(len(first))
    return first[order], number[finer]


def _most(region: Region) -> int:
    return _NO_BOUND if region.most is None else region.most


class _Functions:
    """Functions from states to states, each kept once.

    `rows` [F, K, S + 1] says for each function and each state before it: the state behind it; and,
    if the machine counts (K is 3), what has been counted in the region of that state, and what had
    been counted when the region of the state before was left, or _STAYS. Where it has left a
    region, or started outside of one, counts start at 0; else they come on top.
    """

    def __init__(self, table: _Table, effort: Effort) -> None:
        self.table = table
        self._effort = effort
        states = table.dead + 1
        identity = np.zeros((3 if table.regions else 1, states), np.int16)
        identity[0] = np.arange(states)
        if table.regions:
            identity[2] = np.where(table.region < table.regions, _STAYS, 0)
        dead = np.zeros_like(identity)
        dead[0] = table.dead
        self.rows = np.stack([identity, dead])
        self._count = 2
        self._ids = {identity.tobytes(): 0, dead.tobytes(): 1}
        self._behind = np.full((64, table.after.shape[1]), -1, np.int32)
        self._behind[1] = 1

    def behind(self, functions: Array, classes: Array) -> Array:
        """Returns the functions that these become when a symbol of a class follows each."""
        behind = self._behind[functions, classes]
        unknown = np.flatnonzero(behind < 0)
        if unknown.size:
            width = self._behind.shape[1]
            pairs = np.unique(functions[unknown].astype(np.int64) * width + classes[unknown])
            for start in range(0, len(pairs), _CHUNK):
                self._effort.check_time()
                first, second = np.divmod(pairs[start : start + _CHUNK], width)
                self._behind[first, second] = self._numbers(self._composed(first, second))
                self._grow()
            behind = self._behind[functions, classes]
        return behind

    def _composed(self, functions: Array, classes: Array) -> NDArray[np.int16]:
        table = self.table
        before = self.rows[functions]
        composed = np.zeros_like(before)
        composed[:, 0] = table.dead
        # Most functions are dead for most states.
        row, state = np.nonzero(before[:, 0] != table.dead)
        now = before[row, 0, state]
        behind = table.after[now, classes[row]]
        if not table.regions:
            composed[row, 0, state] = behind
            return composed
        counted, left = before[row, 1, state], before[row, 2, state]
        region = table.region[now]
        inside = region < table.regions
        stays = inside & (table.region[behind] == region)
        leaves = inside & ~stays
        counts = counted + (stays & table.between[now])
        least, most = table.least[region], table.most[region]
        # Without an upper bound, only what is missing to the lower one matters.
        counts = np.where(most == _NO_BOUND, np.minimum(counts, least), counts)
        alive = (behind != table.dead) & (counts <= most)
        alive &= ~leaves | (left == _STAYS) | (counts >= least)
        left = np.where(leaves & (left == _STAYS), counts, left)
        counts = np.where(leaves, 0, counts)
        row, state = row[alive], state[alive]
        composed[row, 0, state] = behind[alive]
        composed[row, 1, state] = counts[alive]
        composed[row, 2, state] = left[alive]
        return composed

    def _numbers(self, rows: NDArray[np.int16]) -> list[int]:
        """Returns the numbers of functions, which are kept if they are new."""
        numbers = []
        new = []
        for index, row in enumerate(rows):
            key = row.tobytes()
            number = self._ids.get(key)
            if number is None:
                number = self._ids[key] = self._count
                self._count += 1
                new.append(index)
            numbers.append(number)
        if new:
            if self._count * rows[0].size > MOST_FUNCTIONS:
                raise TooLargeError("its tokens have too many different effects")
            if self._count > len(self.rows):
                room = np.empty((self._count, *rows.shape[1:]), np.int16)
                self.rows = np.concatenate([self.rows, room])  # at least doubled
            self.rows[self._count - len(new) : self._count] = rows[new]
        return numbers

    def _grow(self) -> None:
        if self._count > len(self._behind):
            room = np.full((self._count, self._behind.shape[1]), -1, np.int32)
            self._behind = np.concatenate([self._behind, room])


def _walk(trie: TokenTrie, functions: _Functions) -> Array:
    """Returns the function of each token [V]. Tokens without symbols have the one that is dead."""
    token_function = np.ones(trie.size, np.int32)
    byte_class = functions.table.symbol_class(np.arange(FIRST_CONTROL, dtype=np.int32))
    before = np.zeros(1, np.int32)
    for level, (tokens, nodes) in zip(trie.levels, trie.ends, strict=True):
        before = functions.behind(before[level.parent], byte_class[level.byte])
        token_function[tokens] = before[nodes]
    controls = np.array(sorted(trie.controls.values()), np.int32)
    if controls.size:
        classes = functions.table.symbol_class(controls + FIRST_CONTROL)
        token_function[controls] = functions.behind(np.zeros_like(controls), classes)
    return token_function


class _TokenStates:
    """The states between two tokens: those of the machine, each with what has been counted.

    Counts that are kept are all of those up to the lower bound, and above it every few. Other
    counts are rounded up to one that is kept.
    """

    def __init__(self, table: _Table, regions: list[Region]) -> None:
        self._table = table
        grids = _grids([_most(region) for region in regions if region.most is not None])
        kept: list[tuple[Array, Array]] = []  # for each region: between characters, and inside
        for each in regions:
            if each.most is None:
                kept.append((_kept(each.least, each.least, 1),) * 2)
                continue
            grid = grids[each.most]
            coarse = grid if each.most <= _EXACT else grid * _COARSE
            kept.append((_kept(each.least, each.most, grid), _kept(each.least, each.most, coarse)))
        outside = np.zeros(1, np.int32)
        states, counts, ranks, rank_starts = [], [], [np.zeros(1, np.int32)], []
        rank_start: dict[tuple[int, bool], int] = {}
        size = 1
        first = 0
        self.first = np.zeros(table.dead + 1, np.int32)  # the first token state of a state
        for state in range(table.dead):
            region, between = int(table.region[state]), bool(table.between[state])
            own = outside if region == table.regions else kept[region][0 if between else 1]
            key = (region, between)
            if region < table.regions and key not in rank_start:
                rank_start[key] = size
                rank = np.searchsorted(own, np.arange(own[-1] + 1)).astype(np.int32)
                ranks.append(rank)
                size += len(rank)
            self.first[state] = first
            first += len(own)
            states.append(np.full(len(own), state, np.int32))
            counts.append(own)
            rank_starts.append(rank_start.get(key, 0))
            if first > 2 * _MOST_TOKEN_STATES:
                raise TooLargeError(f"its automaton has more than {_MOST_TOKEN_STATES} states")
        self.count = first
        self.state = np.concatenate(states)
        self.counted = np.concatenate(counts)
        self._ranks = np.concatenate(ranks)
        self._rank_start = np.array([*rank_starts, 0], np.int32)
        inside = table.region[self.state]
        enough = (inside == table.regions) | (self.counted >= table.least[inside])
        self.accepting: Mask = table.accepting[self.state] & enough

    def after(self, functions: _Functions, used: Array) -> Array:
        """Returns the token state behind each token state and function [S, F], or -1."""
        table = self._table
        after = np.empty((self.count, len(used)), np.int32)
        region = table.region[self.state]
        least, most = table.least[region][:, None], table.most[region][:, None]
        for start in range(0, len(used), _CHUNK):
            rows = functions.rows[used[start : start + _CHUNK]]
            behind = rows[:, 0][:, self.state].T.astype(np.int32)
            alive = behind != table.dead
            target = self.first[behind]
            if table.regions:
                counts = rows[:, 1][:, self.state].T.astype(np.int32)
                left = rows[:, 2][:, self.state].T.astype(np.int32)
                mine = (region < table.regions)[:, None]
                stays = mine & (left == _STAYS)
                before = self.counted[:, None] + left
                alive &= ~mine | stays | ((before >= least) & (before <= most))
                counts += np.where(stays, self.counted[:, None], 0)
                region_behind = table.region[behind]
                limit = np.where(
                    table.most[region_behind] == _NO_BOUND,
                    table.least[region_behind],
                    table.most[region_behind],
                )
                alive &= (table.most[region_behind] == _NO_BOUND) | (counts <= limit)
                counts = np.where(alive, np.minimum(counts, limit), 0)
                target = target + self._ranks[self._rank_start[behind] + counts]
            after[:, start : start + _CHUNK] = np.where(alive, target, -1)
        return after


def _grids(bounds: list[int]) -> dict[int, int]:
    """Returns for each upper bound how many counts become one, so that few enough are left.

    The smallest bounds stay exact.
    """
    share = _MOST_COUNTS
    for index, bound in enumerate(sorted(bounds)):
        share = max(1, (_MOST_COUNTS - sum(sorted(bounds)[:index])) // (len(bounds) - index))
        if bound > share:
            break
    return {bound: -(-bound // share) for bound in bounds}


def _kept(least: int, most: int, grid: int) -> Array:
    exact = np.arange(min(least, most) + 1, dtype=np.int32)
    above = np.arange(most, least, -grid, dtype=np.int32)[::-1]
    return np.concatenate([exact, above])


def _tidied(
    after: Array, states: _TokenStates, token_class: Array, ends: Sequence[int], effort: Effort
) -> Automaton:
    """Returns the automaton without useless states, and with equal classes merged."""
    effort.check_time()
    source, target = np.nonzero(_pairs(after))
    ending = np.flatnonzero(states.accepting)
    need: Array = _distances(len(after), ending, target, source) + np.int32(1)
    reached = _distances(len(after), np.zeros(1, np.int64), source, target) < UNREACHABLE - 1
    useful = reached & (need < UNREACHABLE)
    useful[0] = True
    if np.count_nonzero(useful) > _MOST_TOKEN_STATES:
        raise TooLargeError(f"its automaton has more than {_MOST_TOKEN_STATES} states")
    number = np.full(len(after) + 1, -1, np.int32)  # the last one is for -1
    number[:-1][useful] = np.arange(np.count_nonzero(useful))
    after = number[after[useful]]
    need, accepting = need[useful], states.accepting[useful]
    kept, column = _same_columns(after)
    columns = after[:, kept]
    allowed = np.flatnonzero((columns >= 0).any(0))
    # Class 0 is never allowed, and the last one is that of the end tokens.
    new_class = np.zeros(columns.shape[1], np.int32)
    new_class[allowed] = np.arange(1, len(allowed) + 1)
    token_class = new_class[column][token_class]
    end, last = len(after), len(allowed) + 1
    if (end + 1) * (last + 1) > MOST_ENTRIES:
        raise TooLargeError(f"its table would have more than {MOST_ENTRIES} entries")
    token_class[list(ends)] = last
    next_state = np.full((end + 1, last + 1), -1, np.int32)
    next_state[:-1, 1:last] = columns[:, allowed]
    next_state[:-1, last] = np.where(accepting, end, -1)
    return Automaton(token_class, next_state, np.append(need, 0).astype(np.int32), 0, end)


def _pairs(after: Array) -> Mask:
    pairs = np.zeros((len(after), len(after) + 1), bool)
    for start in range(0, len(after), 256):
        rows = np.arange(start, min(start + 256, len(after)))
        pairs[rows[:, None], after[rows]] = True  # -1 is the last column
    return pairs[:, :-1]


def _distances(
    states: int, starts: NDArray[np.int64], source: NDArray[np.int64], target: NDArray[np.int64]
) -> Array:
    """Returns the least number of edges from one of the starts to each state, or UNREACHABLE - 1.

    One less, because an end token is added to it.
    """
    order = np.argsort(source, kind="stable")
    source, target = source[order], target[order]
    first = np.searchsorted(source, np.arange(states + 1))
    distance = np.full(states, UNREACHABLE - 1, np.int32)
    distance[starts] = 0
    layer, step = starts, 0
    while layer.size:
        step += 1
        sizes = first[layer + 1] - first[layer]
        offsets = np.repeat(first[layer] - np.cumsum(sizes) + sizes, sizes)
        behind = target[offsets + np.arange(sizes.sum())]
        layer = np.unique(behind[distance[behind] == UNREACHABLE - 1])
        distance[layer] = step
    return distance


def _same_columns(table: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the first of each of the different columns, and for each column which it equals."""
    _, first, inverse = np.unique(
        _weights(len(table)) @ table, return_index=True, return_inverse=True
    )
    return first, inverse.reshape(-1)


def _weights(size: int) -> NDArray[np.int64]:
    """Returns factors for sums that stand for whole rows: two different ones are hardly equal."""
    return np.random.default_rng(0).integers(1, 2**62, size, dtype=np.int64)
