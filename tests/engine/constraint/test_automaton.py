from dataclasses import replace

import msgspec
import numpy as np
import pytest

from engine.constraint.automaton import UNREACHABLE, Automaton


def _array(values):
    return np.array(values, np.int32)


# Token 1 once or more, and then token 3.
_AUTOMATON = Automaton(
    _array([0, 1, 0, 2]), _array([[-1, 1, -1], [-1, 1, 2], [-1, -1, -1]]), _array([2, 1, 0]), 0, 2
)


def test_an_automaton_is_the_same_behind_its_bytes():
    other = Automaton.from_bytes(_AUTOMATON.to_bytes())
    assert other.hash == _AUTOMATON.hash
    assert (other.start, other.end, other.states, other.classes, other.least_tokens) == (
        0,
        2,
        3,
        3,
        2,
    )
    for name in ("token_class", "next_state", "need"):
        assert (getattr(other, name) == getattr(_AUTOMATON, name)).all()
        assert getattr(other, name).dtype == np.int32


def test_another_automaton_has_another_hash():
    other = replace(_AUTOMATON, need=_array([UNREACHABLE, 1, 0]))
    assert other.hash != _AUTOMATON.hash


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": 3},
        {"end": 1},
        {"need": _array([2, 1])},
        {"need": _array([0, 1, 0])},
        {"token_class": _array([0, 3])},
        {"token_class": _array([])},
        {"next_state": _array([[0, 1, -1], [-1, 1, 2], [-1, -1, -1]])},
        {"next_state": _array([[-1, 3, -1], [-1, 1, 2], [-1, -1, -1]])},
        {"next_state": _array([[-1, 1, -1], [-1, 1, 2], [-1, 0, -1]])},
    ],
)
def test_numbers_that_are_no_automaton_are_refused(wrong):
    with pytest.raises(ValueError, match=r".+"):
        Automaton.from_bytes(replace(_AUTOMATON, **wrong).to_bytes())


def test_bytes_that_are_no_automaton_are_refused():
    with pytest.raises(msgspec.DecodeError):
        Automaton.from_bytes(b"\x91\x01")
