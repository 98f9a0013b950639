"""Where thoughts begin and end in an answer's tokens, and where one without tokens left is cut."""

import pytest

from engine.constraint.thoughts import Thoughts
from engine.messages import Thought

OPEN, CLOSE, NAME, LINE = 50, 51, 60, 61
HEADER = [NAME, LINE]
HEAD = [OPEN, *HEADER]


def thoughts(budget=None, *, max_tokens=100, reserve=0, begun=False, ended=False):
    mark = Thought(OPEN, CLOSE, HEADER, begun=begun, budget=budget, reserve=reserve, ended=ended)
    return Thoughts(mark, max_tokens)


def cut_of(thinks, state, draft):
    """Returns the cut draft, or None if it is not cut."""
    block, closes = thinks.cut(state, draft)
    assert closes == (block is not draft)
    return block if closes else None


def cuts(thinks, blocks):
    """Returns how the drafts come out one after another, each behind what came before it."""
    state, made = thinks.start, []
    for draft in blocks:
        cut = cut_of(thinks, state, draft)
        made.append(cut)
        state = thinks.after(state, draft if cut is None else cut)
    return made, state


@pytest.mark.parametrize("budget", [None, 8, 100])
def test_a_thought_within_its_budget_is_not_cut(budget):
    draft = [*HEAD, 1, 2, 3, CLOSE, 4, 5]  # its thought has seven tokens, and then one is left
    assert cut_of(thoughts(budget), thoughts().start, draft) is None


def test_a_thought_that_ends_exactly_at_its_budget_is_not_cut_and_is_the_last():
    draft = [*HEAD, 1, 2, 3, CLOSE, 4, 5]
    thinks = thoughts(7)
    assert cut_of(thinks, thinks.start, draft) is None
    assert thinks.is_over(thinks.after(thinks.start, draft))
    assert not thoughts(8).is_over(thinks.after(thinks.start, draft))


@pytest.mark.parametrize("budget", range(5, 12))
def test_a_thought_has_as_many_tokens_as_its_budget_with_its_marks(budget):
    thinks = thoughts(budget)
    draft = [*HEAD, *range(20)]
    cut = cut_of(thinks, thinks.start, draft)
    assert cut == [*draft[: budget - 1], CLOSE]
    assert thinks.after(thinks.start, cut).spent == budget


@pytest.mark.parametrize("budget", range(5))
def test_a_thought_keeps_its_header_however_small_its_budget_is(budget):
    assert cut_of(thoughts(budget), thoughts().start, [*HEAD, 1, 2, 3]) == [*HEAD, CLOSE]


def test_a_thought_that_the_prompt_has_begun_may_have_only_its_closing_mark():
    for budget in (0, 1):
        begun = thoughts(budget, begun=True)
        assert cut_of(begun, begun.start, [1, 2, 3]) == [CLOSE]
    begun = thoughts(2, begun=True)
    assert cut_of(begun, begun.start, [1, 2, 3]) == [1, CLOSE]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (6, [[*HEAD, 1, 2, CLOSE], None, None]),  # up to the end of a block
        (7, [None, [CLOSE], None]),
        (8, [None, [10, CLOSE], None]),
        (11, [None, [10, 11, 12, 13, CLOSE], None]),
        (12, [None, None, [CLOSE]]),
        (13, [None, None, [20, CLOSE]]),
        (17, [None, None, None]),
    ],
)
def test_a_budget_holds_across_blocks(budget, expected):
    blocks = [[*HEAD, 1, 2, 3], [10, 11, 12, 13, 14], [20, 21, 22, 23, 24]]
    made, state = cuts(thoughts(budget), blocks)
    assert made == expected
    assert state.spent == min(budget, 16)


def test_tokens_outside_of_thoughts_are_not_counted():
    thinks = thoughts(9)
    draft = [1, 2, *HEAD, 3, CLOSE, 4, 5, 6, OPEN, *HEADER, 7, 8, 9]
    cut = cut_of(thinks, thinks.start, draft)  # the first thought has five tokens: four are left
    assert cut == [1, 2, *HEAD, 3, CLOSE, 4, 5, 6, *HEAD, CLOSE]


def test_an_answer_that_begins_with_a_header_begins_with_a_thought():
    thinks = thoughts(6)
    assert cut_of(thinks, thinks.start, [*HEADER, 1, 2, 3, 4, 5]) == [*HEADER, 1, 2, 3, CLOSE]
    behind = thinks.after(thinks.start, [1])
    assert cut_of(thinks, behind, [*HEADER, 1, 2, 3, 4, 5]) is None


def test_the_tokens_that_a_form_needs_bound_a_thought_too():
    thinks = thoughts(max_tokens=12, reserve=5)
    assert cut_of(thinks, thinks.start, [*HEAD, *range(20)]) == [*HEAD, 0, 1, 2, CLOSE]
    assert thinks.closed_by == "form"
    assert thoughts(6, max_tokens=12, reserve=5).closed_by == "budget"
    assert thoughts(8, max_tokens=12, reserve=5).closed_by == "form"


def test_a_thought_that_is_ended_gets_no_further_token():
    thinks = thoughts()
    state = thinks.after(thinks.start, [*HEAD, 1, 2])
    assert cut_of(thinks, state, [3, 4, CLOSE, 5]) is None
    thinks.end()
    assert cut_of(thinks, state, [3, 4, CLOSE, 5]) == [CLOSE]
    assert cut_of(thinks, state, [CLOSE, 5]) is None
    assert thinks.closed_by == "client"
    assert thinks.is_over(thinks.after(state, [CLOSE]))


@pytest.mark.parametrize("budget", [None, 0, 100])
def test_a_thought_that_was_ended_before_its_request_came_was_ended_by_the_client(budget):
    thinks = thoughts(budget, ended=True)
    state = thinks.after(thinks.start, [*HEAD, 1, 2])
    assert cut_of(thinks, state, [3, 4, CLOSE, 5]) == [CLOSE]
    assert thinks.closed_by == "client"


@pytest.mark.parametrize(
    ("tokens", "spoken", "is_open"),
    [
        ([], False, False),
        ([*HEAD, 1], False, True),
        ([*HEAD, 1, CLOSE], False, False),
        ([*HEAD, 1, CLOSE, *HEAD, CLOSE], False, False),
        ([*HEAD, 1, CLOSE, 2], True, False),
        ([1, *HEAD], True, True),
        ([OPEN, 70, LINE, 1, CLOSE], True, False),  # a channel of another name may be an answer
        ([*HEADER, 1, CLOSE], False, False),
        ([1], True, False),
    ],
)
def test_what_is_said_outside_of_thoughts_is_known(tokens, spoken, is_open):
    thinks = thoughts()
    state = thinks.after(thinks.start, tokens)
    assert (state.spoken, state.open) == (spoken, is_open)
