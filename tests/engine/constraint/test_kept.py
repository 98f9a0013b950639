"""The account of the constraints that a worker has."""

from engine.constraint.kept import Kept
from engine.messages import MOST_CONSTRAINTS


def test_the_constraints_named_last_are_kept():
    kept: Kept[int] = Kept()
    for number in range(MOST_CONSTRAINTS):
        kept.add(str(number), number)
    assert kept.get("0") == 0
    kept.add("new", -1)
    assert kept.get("1") is None
    assert kept.get("0") == 0
    assert kept.get("new") == -1


def test_adding_a_constraint_again_drops_none():
    kept: Kept[int] = Kept()
    for number in [*range(MOST_CONSTRAINTS), 0]:
        kept.add(str(number), number)
    assert all(kept.get(str(number)) == number for number in range(MOST_CONSTRAINTS))
