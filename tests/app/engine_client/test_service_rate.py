import pytest

from app.engine_client.service_rate import ServiceRate


def test_the_wait_is_the_measured_time_between_ends():
    rate = ServiceRate()
    for end in range(10):
        rate.ended(end * 0.5, others=3)
    assert rate.wait_s(1) == pytest.approx(0.5)
    assert rate.wait_s(4) == pytest.approx(2.0)


def test_time_without_open_requests_does_not_count():
    rate = ServiceRate()
    rate.ended(0.0, others=1)
    rate.ended(2.0, others=0)
    rate.ended(1000.0, others=1)
    rate.ended(1002.0, others=0)
    assert rate.wait_s(1) == pytest.approx(2.0)


def test_the_wait_grows_when_answers_become_slower():
    rate, now = ServiceRate(), 0.0
    for took in [1.0] * 20 + [9.0] * 20:
        now += took
        rate.ended(now, others=1)
    assert 8.5 < rate.wait_s(1) <= 9.0


def test_the_wait_is_a_guess_before_any_answer_has_ended():
    assert ServiceRate().wait_s(0) == 1.0
