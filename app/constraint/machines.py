"""Deterministic automata over symbols: made from expressions, intersected, complemented.

A machine has no dead states: from each of its states an accepting one can be reached, except that
a machine which accepts nothing has a start state all the same.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from app.constraint.expressions import (
    Alternatives,
    Counted,
    Embedded,
    Expression,
    Listed,
    Range,
    Ranges,
    Repeated,
    Sequential,
    Symbols,
    merged_ranges,
)
from app.constraint.limits import AmbiguousError, Effort, TooLargeError

Edge = tuple[int, int, int]  # the first and the last symbol, and the state behind them


@dataclass(frozen=True)
class Region:
    """The states inside of a `Counted`, with its bounds."""

    least: int
    most: int | None


@dataclass(frozen=True)
class Tag:
    """A state's part in a region. Each symbol that leads from `between` into the region counts."""

    region: int
    between: bool  # whether the state is between two of the counted parts


@dataclass(frozen=True)
class Machine:
    """A deterministic automaton. State 0 is the start. A state's edges are sorted and disjoint."""

    edges: list[list[Edge]]
    accepting: list[bool]
    tags: list[Tag | None]
    regions: list[Region] = field(default_factory=list)

    @property
    def accepts_nothing(self) -> bool:
        """Returns whether there is no sequence of symbols that it accepts."""
        return not any(self.accepting)

    def after(self, state: int, symbol: int) -> int | None:
        """Returns the state behind a symbol, or None if the symbol may not follow."""
        for low, high, target in self.edges[state]:
            if low <= symbol <= high:
                return target
        return None

    def accepts(self, symbols: Iterable[int]) -> bool:
        """Returns whether it accepts these symbols. It must have no regions."""
        state: int | None = 0
        for symbol in symbols:
            state = self.after(state, symbol) if state is not None else None
        return state is not None and self.accepting[state]


def machine(expression: Expression, effort: Effort) -> Machine:
    """Returns the automaton of an expression.

    Raises TooLargeError, or AmbiguousError if it cannot tell which of several things it counts.
    """
    graph = _Graph(effort)
    start = graph.build(expression, graph.accept)
    return _determined(graph, start, effort)


def intersection(first: Machine, second: Machine, effort: Effort) -> Machine:
    """Returns the automaton of what both accept. Neither may have regions."""
    ids = {(0, 0): 0}
    waiting = [(0, 0)]
    edges: list[list[Edge]] = []
    accepting = []
    for pair in waiting:  # grows meanwhile
        effort.take()
        one, other = pair
        row = []
        for low, high, targets in _overlaps(first.edges[one], second.edges[other]):
            if targets not in ids:
                ids[targets] = len(ids)
                waiting.append(targets)
            row.append((low, high, ids[targets]))
        edges.append(row)
        accepting.append(first.accepting[one] and second.accepting[other])
    return _alive(edges, accepting, [None] * len(edges), [])


def complement(of: Machine, universe: Range) -> Machine:
    """Returns the automaton of the other sequences of symbols out of one range."""
    sink = len(of.edges)
    edges = []
    for row in [*of.edges, []]:
        full: list[Edge] = []
        position = universe[0]
        for low, high, target in row:
            if low > position:
                full.append((position, low - 1, sink))
            full.append((low, high, target))
            position = high + 1
        if position <= universe[1]:
            full.append((position, universe[1], sink))
        edges.append(full)
    accepting = [not each for each in of.accepting] + [True]
    return _alive(edges, accepting, [None] * len(edges), [])


def _overlaps(first: list[Edge], second: list[Edge]) -> Iterator[tuple[int, int, tuple[int, int]]]:
    i = j = 0
    while i < len(first) and j < len(second):
        low = max(first[i][0], second[j][0])
        high = min(first[i][1], second[j][1])
        if low <= high:
            yield low, high, (first[i][2], second[j][2])
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1


class _Graph:
    """An automaton that is not deterministic. It is built from its end to its start."""

    def __init__(self, effort: Effort) -> None:
        self.edges: list[list[Edge]] = []
        self.empty: list[list[int]] = []  # states that are reached without a symbol
        self.tags: list[Tag | None] = []
        self.regions: list[Region] = []
        self._effort = effort
        self._region: int | None = None  # new states are inside of it
        self._steps: dict[tuple[Ranges, int, int | None], int] = {}
        self._built: dict[tuple[int, int], int] = {}
        self._kept: list[Expression] = []  # keeps the identities in `_built` unique
        self.accept = self._state()

    def build(self, expression: Expression, end: int) -> int:
        """Returns the state from which the expression leads to the state `end`."""
        if isinstance(expression, Symbols):
            return self._step(expression.ranges, end)
        key = (id(expression), end)
        if key not in self._built:
            self._kept.append(expression)
            self._built[key] = self._build(expression, end)
        return self._built[key]

    def _build(self, expression: Expression, end: int) -> int:
        match expression:
            case Sequential(parts=parts):
                for part in reversed(parts):
                    end = self.build(part, end)
                return end
            case Alternatives(parts=parts):
                return self._state(empty=[self.build(part, end) for part in parts])
            case Repeated(part=part, least=least, most=most):
                return self._repeat(part, least, most, end)
            case Counted(part=part):
                return self._count(expression, part, end)
            case Listed():
                return self._list(expression, end)
            case Embedded(machine=machine, writing=writing):
                states = [self._state(empty=[end] if each else []) for each in machine.accepting]
                for state, row in zip(states, machine.edges, strict=True):
                    by_target: dict[int, list[Range]] = {}
                    for low, high, target in row:
                        by_target.setdefault(target, []).append((low, high))
                    self.empty[state] += [
                        self.build(writing(merged_ranges(ranges)), states[target])
                        for target, ranges in by_target.items()
                    ]
                return states[0]
            case Symbols():
                raise AssertionError("built by `build`")

    def _repeat(self, part: Expression, least: int, most: int | None, end: int) -> int:
        self._effort.take(max(least, most or 0))
        if most is None:
            loop = self._state()
            self.empty[loop] = [end, self.build(part, loop)]
            end = loop
        else:
            last = end
            for _ in range(most - least):
                end = self._state(empty=[last, self.build(part, end)])
        for _ in range(least):
            end = self.build(part, end)
        return end

    def _list(self, listed: Listed, end: int) -> int:
        # The states before the next part, by how many parts are there already. The last state
        # stands for more of them too, if there may be any number.
        last = max(listed.least, 1) if listed.most is None else listed.most
        states = [end if count >= listed.least else None for count in range(last + 1)]
        for part, may_be_left_out in reversed(listed.parts):
            before: list[int | None] = []
            for count, following in enumerate(states):
                written = None
                if count < last or listed.most is None:
                    written = states[min(count + 1, last)]
                if written is not None:
                    written = self.build(part, written)
                    written = self.build(listed.separator, written) if count else written
                if not may_be_left_out:
                    before.append(written)
                elif written is None or following is None:
                    before.append(following if written is None else written)
                else:
                    before.append(self._state(empty=[written, following]))
            states = before
        return self._state() if states[0] is None else states[0]

    def _count(self, counted: Counted, part: Expression, end: int) -> int:
        if self._region is not None:
            raise AmbiguousError("something is counted inside of something that is counted")
        region = len(self.regions)
        self.regions.append(Region(counted.least, counted.most))
        between = self._state()
        self.tags[between] = Tag(region, between=True)
        self._region = region
        inside = self.build(part, between)
        self._region = None
        self.empty[between] = [end, inside]
        return between

    def _step(self, ranges: Ranges, end: int) -> int:
        key = (ranges, end, self._region)
        if key not in self._steps:
            self._steps[key] = self._state(edges=[(low, high, end) for low, high in ranges])
        return self._steps[key]

    def _state(self, edges: list[Edge] | None = None, empty: list[int] | None = None) -> int:
        self._effort.take()
        self.edges.append(edges or [])
        self.empty.append(empty or [])
        self.tags.append(None if self._region is None else Tag(self._region, between=False))
        return len(self.edges) - 1


def _determined(graph: _Graph, start: int, effort: Effort) -> Machine:
    closures: dict[int, frozenset[int]] = {}

    def closure(state: int) -> frozenset[int]:
        """Returns the states reached without a symbol, as far as they have a meaning."""
        if state not in closures:
            reached = {state}
            waiting = [state]
            while waiting:
                for each in graph.empty[waiting.pop()]:
                    if each not in reached:
                        reached.add(each)
                        waiting.append(each)
            closures[state] = frozenset(
                each
                for each in reached
                if graph.edges[each]
                or each == graph.accept
                or ((tag := graph.tags[each]) is not None and tag.between)
            )
        return closures[state]

    unions: dict[frozenset[int], frozenset[int]] = {}

    def union(states: frozenset[int]) -> frozenset[int]:
        if len(states) == 1:
            return closure(*states)
        if states not in unions:
            unions[states] = frozenset[int]().union(*map(closure, states))
        return unions[states]

    ids = {closure(start): 0}
    waiting = [closure(start)]
    edges: list[list[Edge]] = []
    tags = []
    for members in waiting:  # grows meanwhile
        effort.take()
        tags.append(_tag(graph, members, closure))
        row: list[Edge] = []
        for low, high, behind in _disjoint(graph, members):
            targets = union(behind)
            target = ids.get(targets)
            if target is None:
                target = ids[targets] = len(waiting)
                waiting.append(targets)
                if target >= effort.most_states:
                    raise TooLargeError(f"its automaton has more than {effort.most_states} states")
            if row and row[-1][1] == low - 1 and row[-1][2] == target:
                row[-1] = (row[-1][0], high, target)
            else:
                row.append((low, high, target))
        edges.append(row)
    accepting = [graph.accept in members for members in waiting]
    return _alive(edges, accepting, tags, graph.regions)


def _disjoint(graph: _Graph, members: frozenset[int]) -> Iterator[tuple[int, int, frozenset[int]]]:
    """Yields ranges of symbols that do not overlap, with the states behind each."""
    if len(members) == 1:
        for low, high, target in graph.edges[next(iter(members))]:
            yield low, high, frozenset((target,))
        return
    found = sorted(edge for member in members for edge in graph.edges[member])
    index = 0
    active: list[Edge] = []
    position = 0
    while active or index < len(found):
        if not active:
            position = found[index][0]
        while index < len(found) and found[index][0] == position:
            active.append(found[index])
            index += 1
        end = min(high for _, high, _ in active)
        if index < len(found):
            end = min(end, found[index][0] - 1)
        yield position, end, frozenset(target for _, _, target in active)
        position = end + 1
        active = [edge for edge in active if edge[1] >= position]


def _tag(
    graph: _Graph, members: frozenset[int], closure: Callable[[int], frozenset[int]]
) -> Tag | None:
    """Returns the tag of a deterministic state. Raises AmbiguousError if its members disagree."""
    tagged = {tag for member in members if (tag := graph.tags[member]) is not None}
    if not tagged:
        return None
    between = [
        member for member in members if (tag := graph.tags[member]) is not None and tag.between
    ]
    if between:
        if len(between) == 1 and closure(between[0]) == members:
            return graph.tags[between[0]]
    elif len(tagged) == 1 and all(graph.tags[member] is not None for member in members):
        return tagged.pop()
    raise AmbiguousError("a length is limited in one of several alternatives that begin alike")


def _alive(
    edges: list[list[Edge]],
    accepting: list[bool],
    tags: list[Tag | None],
    regions: list[Region],
) -> Machine:
    """Returns the machine without the states from which no accepting one can be reached."""
    before: list[list[int]] = [[] for _ in edges]
    for state, row in enumerate(edges):
        for _, _, target in row:
            before[target].append(state)
    alive = {state for state, accepts in enumerate(accepting) if accepts}
    waiting = list(alive)
    while waiting:
        for state in before[waiting.pop()]:
            if state not in alive:
                alive.add(state)
                waiting.append(state)
    kept = sorted(alive | {0})
    number = {state: index for index, state in enumerate(kept)}
    return Machine(
        [
            [(low, high, number[target]) for low, high, target in edges[state] if target in alive]
            for state in kept
        ],
        [accepting[state] for state in kept],
        [tags[state] for state in kept],
        regions,
    )
