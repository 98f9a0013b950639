"""The longest times of passes, by their size."""

from engine.messages import GenerateRequest, Sampling
from engine.schedule.pass_times import PassTimes
from engine.schedule.sequence import Sequence, Work


def work(tokens=0, *, denoise=True, speculation=None):
    sequence = Sequence.start(GenerateRequest("a", [5], 10, Sampling(seed=0)))
    return Work(sequence, [5] * tokens, denoise, speculation)


def test_a_size_without_a_pass_has_no_time():
    times = PassTimes()
    times.record([work()], 1.0)
    assert times.longest_s([work()]) == 1.0
    for other in ([work(), work()], [work(300)], [work(1, denoise=False)]):
        assert times.longest_s(other) is None


def test_the_first_pass_of_a_size_counts_until_there_is_another():
    times = PassTimes()
    for seconds, longest_s in ((90.0, 90.0), (0.5, 0.5), (0.2, 0.5), (0.7, 0.7)):
        times.record([work(300)], seconds)
        assert times.longest_s([work(300)]) == longest_s


def test_passes_with_about_as_many_tokens_have_the_same_size():
    times = PassTimes()
    times.record([work(300)], 1.0)
    assert times.longest_s([work(500)]) == 1.0
    assert times.longest_s([work(), work(500, denoise=False)]) == 1.0
    assert times.longest_s([work(600)]) is None


def test_a_speculation_makes_a_pass_larger():
    times = PassTimes()
    times.record([work()], 1.0)
    assert times.longest_s([work(speculation=[5] * 8)]) is None
