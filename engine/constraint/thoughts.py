"""The thoughts in an answer's tokens: which are open, what they have spent, and where one must end.

The worker and the front end read the same tokens with this. It knows the marks of the chat format
as token ids only. A thought is closed because it has no tokens left, because the form that a
request demands needs the remaining ones, or because the client ends it. All three are one limit.

A thought that begins behind its opening mark keeps its header, so that the model never sees half of
one. So a thought has at least its marks and its header, however low the limit is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from engine.messages import ClosedBy, Thought


@dataclass(frozen=True)
class ThoughtState:
    """What an answer has of thoughts behind some of its tokens."""

    open: bool = False  # the next token belongs to a thought
    spent: int = 0  # tokens of all thoughts, with their marks
    spoken: bool = False  # some token belongs to no thought, or may be an answer in a channel
    started: bool = False  # the answer has tokens


class _Part(NamedTuple):
    """A thought within some tokens."""

    first: int  # the index of its first token, which may be its opening mark
    body: int  # the index behind its opening mark and its header
    close: int | None  # the index of its closing mark, if it is among the tokens
    named: bool  # it has the header of a thought, or began before these tokens


class Thoughts:
    """The thoughts of one answer, and how many tokens they may have. `end` lowers that to none.

    A state is that behind some beginning of the answer. The methods do not change it.
    """

    def __init__(self, thought: Thought, max_tokens: int) -> None:
        self._marks = thought
        limits: list[tuple[int, ClosedBy]] = []
        if thought.budget is not None:
            limits.append((thought.budget, "budget"))
        if thought.reserve:
            limits.append((max_tokens - thought.reserve, "form"))
        self._limit: int | None = None  # the most tokens of all thoughts, with their marks
        self.closed_by: ClosedBy | None = None  # what sets this limit
        if limits:
            self._limit, self.closed_by = min(limits)
        if thought.ended:
            self.end()

    @property
    def opener(self) -> int:
        """Returns the token that opens a thought."""
        return self._marks.open

    @property
    def start(self) -> ThoughtState:
        """Returns the state before the answer's first token."""
        return ThoughtState(open=self._marks.begun)

    def end(self) -> None:
        """Leave no tokens to a thought that is open or that begins from now on."""
        self._limit, self.closed_by = 0, "client"

    def is_over(self, state: ThoughtState) -> bool:
        """Returns whether no further thought may begin, because there are no tokens left for it."""
        return self._limit is not None and not state.open and state.spent >= self._limit

    def after(self, state: ThoughtState, tokens: Sequence[int]) -> ThoughtState:
        """Returns the state behind further tokens."""
        if not tokens:
            return state
        outside, spent, spoken, is_open = 0, state.spent, state.spoken, False
        for part in self._parts(state, tokens):
            spoken = spoken or part.first > outside or not part.named
            outside = len(tokens) if part.close is None else part.close + 1
            spent += outside - part.first
            is_open = part.close is None
        spoken = spoken or outside < len(tokens)
        return replace(state, open=is_open, spent=spent, spoken=spoken, started=True)

    def cut(self, state: ThoughtState, draft: list[int]) -> tuple[list[int], bool]:
        """Returns the draft up to the end of a thought that then has no tokens left.

        Returns also whether there is such a thought. The last token is then its closing mark, in
        the place of a token for which there is no room. Without one, the draft itself is returned.
        """
        if self._limit is None:
            return draft, False
        spent = state.spent
        for part in self._parts(state, draft):
            last = max(part.body, part.first + self._limit - spent - 1)
            close = len(draft) if part.close is None else part.close
            if last < close:
                return [*draft[:last], self._marks.close], True
            spent += close + 1 - part.first
        return draft, False

    def _parts(self, state: ThoughtState, tokens: Sequence[int]) -> Iterator[_Part]:
        """Yields the thoughts in the tokens behind a state, in order."""
        marks, at, is_open = self._marks, 0, state.open
        header = marks.header
        while at < len(tokens):
            if is_open:
                first = body = at
                named = True
            elif at == 0 and not state.started and header and self._has_header(tokens, 0):
                first, body, named = 0, len(header), True
            else:
                opened = _index(tokens, marks.open, at)
                if opened is None:
                    return
                named = self._has_header(tokens, opened + 1)
                first, body = opened, opened + 1 + (len(header) if named else 0)
            close = _index(tokens, marks.close, body)
            yield _Part(first, body, close, named)
            if close is None:
                return
            at, is_open = close + 1, False

    def _has_header(self, tokens: Sequence[int], at: int) -> bool:
        header = self._marks.header
        return list(tokens[at : at + len(header)]) == header


def _index(tokens: Sequence[int], token: int, start: int) -> int | None:
    """Returns the index of the token's first occurrence from `start` on, or None."""
    try:
        return tokens.index(token, start)
    except ValueError:
        return None
