from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.constraint.limits import Effort, NoWayError
from app.constraint.machines import machine
from app.constraint.numbers import integers, numbers

_DECIMALS = st.builds(
    lambda sign, whole, fraction: Decimal(f"{sign}{whole}{fraction}"),
    st.sampled_from(["", "-"]),
    st.one_of(st.integers(0, 12), st.integers(0, 4000)),
    st.sampled_from(["", ".0", ".5", ".05", ".50", ".123", ".999"]),
)
_BOUNDS = st.one_of(st.none(), _DECIMALS)


@settings(deadline=None)
@given(_BOUNDS, _BOUNDS, st.booleans(), st.booleans(), st.lists(_DECIMALS, max_size=20))
def test_numbers_between_bounds_are_written_and_no_others(least, most, above, below, values):
    written = machine(numbers(least, most, above, below, Effort()), Effort())
    for value in [*values, *(bound for bound in (least, most) if bound is not None)]:
        text = format(value, "f")
        fits = (least is None or (value > least if above else value >= least)) and (
            most is None or (value < most if below else value <= most)
        )
        if text.startswith("-") and value == 0:
            assert fits or not written.accepts(text.encode())
        else:
            assert written.accepts(text.encode()) == fits, (text, least, most)


@settings(deadline=None)
@given(
    st.one_of(st.none(), st.integers(-400, 4000)),
    st.one_of(st.none(), st.integers(-400, 4000)),
    st.sampled_from([1, 2, 3, 7, 10, 1000]),
    st.lists(st.integers(-5000, 50_000), max_size=30),
)
def test_integers_between_bounds_are_written_and_no_others(least, most, multiples_of, values):
    written = machine(integers(least, most, multiples_of, Effort()), Effort())
    for value in values:
        fits = (least is None or value >= least) and (most is None or value <= most)
        fits = fits and value % multiples_of == 0
        assert written.accepts(str(value).encode()) == fits, value
    assert not written.accepts(b"07")


def test_a_fraction_is_too_short_to_be_rounded_to_a_bound_that_is_excluded():
    below_one = machine(numbers(None, Decimal(1), False, True, Effort()), Effort())
    assert below_one.accepts(b"0.999999999999")
    assert not below_one.accepts(b"0." + b"9" * 30)


def test_multiples_of_a_large_number_are_refused():
    with pytest.raises(NoWayError):
        integers(0, None, 5000, Effort())
