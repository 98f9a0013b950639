"""The figures of how a block settled."""

import pytest

from engine.schedule.sequence import StepResult
from engine.schedule.settling import Settling
from tests.engine.schedule.test_sequence import start


def settled(drafts):
    settling = Settling()
    for step, draft in enumerate(drafts, 1):
        settling = settling.after(step, draft)
    return settling


@pytest.mark.parametrize(
    ("drafts", "counts"),
    [
        ([[1, 2, 3]], [3]),
        ([[1, 2, 3], [1, 2, 3]], [3, 3]),
        ([[1, 9, 9], [1, 2, 9], [1, 2, 3]], [1, 2, 3]),
        # A token that comes back counts from its last change on.
        ([[1, 2, 3], [9, 2, 3], [1, 2, 3]], [2, 2, 3]),
        ([[1, 2], [1, 2, 3]], [2, 3]),
        ([[1, 2, 3], [1, 2], [1, 2, 3]], [2, 2, 3]),
    ],
)
def test_a_position_is_final_from_the_last_step_that_changed_it(drafts, counts):
    assert settled(drafts).counts(3, len(drafts)) == counts


def test_only_the_first_positions_count():
    assert settled([[1, 9, 3], [1, 2, 9]]).counts(2, 2) == [1, 2]


def watched(draft, **result):
    return StepResult(draft, accepted=[True] * len(draft), **result)


def steps(sequence, *drafts):
    for draft in drafts:
        block = sequence.record(sequence.next_work(1000), draft)
    return block


def done(draft, **result):
    return StepResult(draft, "confident", accepted=[True] * len(draft), **result)


def test_each_block_has_its_own_figures():
    sequence = start()
    assert steps(sequence, watched([6, 7]), done([6, 8])).settled == [1, 2]
    assert steps(sequence, watched([6, 7]), watched([6, 7]), done([6, 7])).settled == [2, 2, 2]


def test_a_block_has_figures_only_if_drafts_are_requested():
    assert steps(start(), StepResult([6, 7], "confident")).settled is None


def test_the_first_step_of_a_block_counts_that_a_won_speculation_has_made():
    sequence = start()
    steps(sequence, watched([6, 7], nearly=True))
    work = sequence.next_work(1000, speculate=True)
    sequence.record(work, done([6, 7], next_step=watched([8, 9])))
    assert steps(sequence, done([8, 8])).settled == [1, 2]
