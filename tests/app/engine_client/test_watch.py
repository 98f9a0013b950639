"""When a worker counts as hung, with a simulated clock."""

import pytest

from app.engine_client.watch import Watch
from engine.messages import Block, Heartbeat, Loading, Ready

READY = Ready("cpu", "float32", 100, 8, 160, "none")


@pytest.fixture
def watch():
    watch = Watch(silence_s=100)
    watch.heard(READY)
    watch.heard(Heartbeat([], 0, 0.0))
    return watch


def ticks_until_hung(watch, cancelled=(), *, heartbeat=None):
    for number in range(1, 10_000):
        if heartbeat is not None:
            watch.heard(heartbeat)
        if watch.tick(1.0, cancelled):
            return number
    return None


def test_a_worker_that_loads_never_counts_as_hung():
    watch = Watch(silence_s=100)
    watch.heard(Loading(1, 2))
    assert ticks_until_hung(watch) is None
    assert not watch.was_ready


def test_a_silent_worker_hangs_after_the_allowed_silence(watch):
    assert ticks_until_hung(watch) == 101
    assert watch.was_ready


@pytest.mark.parametrize("message", [Block("a", 0, [5], 1, 0.1), Heartbeat(["a"], 1, 0.0)])
def test_every_message_is_a_sign_of_life(watch, message):
    assert [watch.tick(100, ()), watch.heard(message), watch.tick(100, ())] == [None] * 3
    assert watch.tick(1, ()) == "it has been silent for 101 s"


@pytest.mark.parametrize(("longest_s", "allowed_s"), [(None, 500), (0.5, 100), (60, 600)])
def test_the_allowed_silence_depends_on_earlier_passes_of_the_size(watch, longest_s, allowed_s):
    watch.heard(Heartbeat(["a"], 1, longest_s))
    assert ticks_until_hung(watch) == allowed_s + 1


def test_a_worker_that_does_not_answer_a_cancel_hangs_although_it_is_not_silent(watch):
    beat = Heartbeat(["a"], 1, 0.0)
    assert ticks_until_hung(watch, (), heartbeat=beat) is None
    assert ticks_until_hung(watch, ("a",), heartbeat=beat) == 101
    assert watch.tick(1, ("a",)) == "it has not answered a cancel for 102 s"


def test_each_cancel_has_its_own_time(watch):
    beat = Heartbeat(["a"], 1, 0.0)
    for number in range(1000):
        watch.heard(beat)
        assert watch.tick(1, (f"{number // 100}",)) is None
