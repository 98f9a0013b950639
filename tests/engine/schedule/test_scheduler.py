from statistics import median

import pytest

from engine.messages import Decision, GenerateRequest, Image, LabelSlot, Read, Sampling
from engine.schedule.scheduler import PATIENCE_S, Changes, Scheduler
from engine.schedule.sequence import Sequence, StepResult


def sequence(request_id, prompt=(1, 2), priority=0):
    sampling = Sampling(seed=0, priority=priority)
    return Sequence.start(GenerateRequest(request_id, list(prompt), 10, sampling))


def scheduler_with(*sequences, max_active=1):
    scheduler = Scheduler(prefill_chunk=8, max_active=max_active)
    for each in sequences:
        scheduler.add(each, now=0)
    return scheduler


def next_pass(scheduler, now=0.0):
    scheduler.rearrange(now)
    return scheduler.next_pass(now)


def sequences_in(works):
    return [work.sequence for work in works]


def record(works):
    for work in works:
        step = StepResult([0]) if work.denoise else None
        work.sequence.record(work, step)


def test_an_idle_scheduler_has_no_pass():
    assert next_pass(scheduler_with()) == []


def test_requests_run_one_by_one_in_order_of_arrival_if_only_one_may_run():
    first, second = sequence("a"), sequence("b")
    scheduler = scheduler_with(first, second)
    assert sequences_in(next_pass(scheduler)) == [first]
    assert sequences_in(next_pass(scheduler)) == [first]
    scheduler.remove(first)
    assert sequences_in(next_pass(scheduler)) == [second]


def test_the_waiting_request_with_the_lowest_priority_runs_first_then_the_earliest():
    waiting = [
        sequence(name, priority=p) for name, p in zip("abcde", (0, 5, -1, 0, -1), strict=True)
    ]
    scheduler, order = scheduler_with(*waiting), []
    while scheduler.waiting + scheduler.running:
        (running,) = sequences_in(next_pass(scheduler))
        order.append(running.request.id)
        scheduler.remove(running)
    assert order == ["c", "e", "a", "d", "b"]


def test_a_better_priority_parks_the_worst_running_request_and_it_resumes_later():
    first, second = sequence("a", priority=5), sequence("b", priority=9)
    scheduler = scheduler_with(first, second, max_active=2)
    assert scheduler.rearrange(0) == Changes(parked=[], started=[first, second])
    person = sequence("person")
    scheduler.add(person, now=1)
    assert scheduler.rearrange(1) == Changes(parked=[second], started=[person])
    assert sequences_in(scheduler.next_pass(1)) == [person]  # `first` pauses
    assert (scheduler.running, scheduler.waiting) == (2, 1)
    scheduler.remove(person)
    assert scheduler.rearrange(2) == Changes(parked=[], started=[second])
    assert sequences_in(scheduler.next_pass(2)) == [first]


def test_an_equal_priority_parks_no_request():
    running = sequence("a")
    scheduler = scheduler_with(running)
    next_pass(scheduler)
    scheduler.add(sequence("b"), now=0)
    assert scheduler.rearrange(1) == Changes(parked=[], started=[])


def test_a_request_that_has_paused_for_too_long_is_served_until_it_has_a_block():
    background, person = sequence("a", priority=9), sequence("b")
    scheduler = scheduler_with(background, person, max_active=2)
    assert sequences_in(next_pass(scheduler, PATIENCE_S - 1)) == [person]
    for now in (PATIENCE_S, PATIENCE_S + 5):
        assert sequences_in(next_pass(scheduler, now)) == [background, person]
    background.block_index += 1
    assert sequences_in(next_pass(scheduler, PATIENCE_S + 6)) == [background, person]
    assert sequences_in(next_pass(scheduler, PATIENCE_S + 7)) == [person]


def test_a_request_that_has_waited_for_too_long_is_the_next_to_run():
    running, background = sequence("a"), sequence("b", priority=9)
    scheduler = scheduler_with(running, background)
    next_pass(scheduler)
    late = sequence("c")
    scheduler.add(late, now=1)
    scheduler.rearrange(PATIENCE_S)
    scheduler.remove(running)
    assert scheduler.rearrange(PATIENCE_S).started == [background]


def test_after_a_shrink_the_latest_requests_are_parked():
    several = [sequence(name) for name in "abcd"]
    scheduler = scheduler_with(*several, max_active=4)
    next_pass(scheduler)
    scheduler.shrink(2)
    assert scheduler.rearrange(1) == Changes(parked=several[2:], started=[])


class Simulation:
    """A device with a simulated clock: a pass takes a fixed time, and more per canvas and token."""

    def __init__(self, *, max_active=4, pass_s=0.010, canvas_s=0.005, token_s=0.0001, steps=12):
        self.scheduler = Scheduler(prefill_chunk=1024, max_active=max_active)
        self.costs, self.steps = (pass_s, canvas_s, token_s), steps
        self.now = 0.0
        self.blocks = {}  # by sequence: the times at which its blocks were finished

    def arrive(self, each):
        self.blocks[each] = []
        self.scheduler.add(each, self.now)
        return each

    def run(self, until):
        """Run passes until the condition holds. Returns the time of the longest pass."""
        longest = 0.0
        while not until():
            changes = self.scheduler.rearrange(self.now)
            for each in changes.parked:
                each.park()
            for each in changes.started:
                each.reuse(0)
            works = self.scheduler.next_pass(self.now)
            assert works, "sequences are waiting, but none is running"
            canvases = sum(work.denoise for work in works)
            sizes = (1, canvases, sum(len(work.tokens) for work in works))
            duration = sum(cost * size for cost, size in zip(self.costs, sizes, strict=True))
            self.now += duration
            longest = max(longest, duration)
            for work in works:
                self._record(work)
        return longest

    def _record(self, work):
        each = work.sequence
        done = each.step_index + 1 >= self.steps
        step = StepResult([7] * 32, "confident" if done else None) if work.denoise else None
        block = each.record(work, step)
        if block is not None:
            self.blocks[each].append(self.now)
            if block.finish_reason is not None:
                self.scheduler.remove(each)


def answering(name, tokens=32 * 1000, prompt=200, priority=0):
    request = GenerateRequest(name, [1] * prompt, tokens, Sampling(0, priority=priority))
    return Sequence.start(request)


def time_to_first_block(simulation, each):
    arrived = simulation.now
    simulation.arrive(each)
    simulation.run(lambda: simulation.blocks[each])
    return simulation.blocks[each][0] - arrived


@pytest.mark.parametrize("max_active", [1, 2, 4, 8])
def test_four_background_jobs_do_not_delay_the_first_block_of_a_person(max_active):
    idle = time_to_first_block(Simulation(max_active=max_active), answering("person", 64))
    busy = Simulation(max_active=max_active)
    jobs = [busy.arrive(answering(f"job {i}", priority=10)) for i in range(4)]
    step = busy.run(lambda: len(busy.blocks[jobs[0]]) >= 2)
    times = []
    for turn in range(5):
        times.append(time_to_first_block(busy, answering(f"person {turn}", 64)))
        more = 4 + sum(len(busy.blocks[job]) for job in jobs)
        busy.run(lambda more=more: sum(len(busy.blocks[job]) for job in jobs) >= more)
    assert median(times) <= 1.5 * idle
    assert max(times) <= 1.5 * idle + step


def test_a_background_job_advances_while_a_person_sends_requests_all_the_time():
    simulation = Simulation(max_active=2)
    job = simulation.arrive(answering("job", priority=10))
    for turn in range(200):
        time_to_first_block(simulation, answering(f"turn {turn}", tokens=64))
    assert simulation.now > PATIENCE_S
    assert len(simulation.blocks[job]) >= simulation.now // (2 * PATIENCE_S)


def test_requests_of_equal_priority_share_the_device_and_end_in_order_of_arrival():
    simulation = Simulation(max_active=2)
    each = [simulation.arrive(answering(name, tokens=96)) for name in "abcdef"]
    simulation.run(lambda: simulation.scheduler.waiting + simulation.scheduler.running == 0)
    ends = [simulation.blocks[e][-1] for e in each]
    assert ends == sorted(ends)
    assert all(len(simulation.blocks[e]) == 3 for e in each)


def test_at_most_max_active_run_together_and_the_next_joins_when_one_leaves():
    first, second, third = sequence("a"), sequence("b"), sequence("c")
    scheduler = scheduler_with(first, second, third, max_active=2)
    assert sequences_in(next_pass(scheduler)) == [first, second]
    scheduler.remove(first)
    assert sequences_in(next_pass(scheduler)) == [second, third]


def test_a_pass_encodes_at_most_one_chunk_for_all_requests_together():
    running, long, late = sequence("a"), sequence("b", [1] * 20), sequence("c", [1] * 3)
    scheduler = scheduler_with(running, long, late, max_active=3)
    encoded = []
    for _ in range(5):
        works = next_pass(scheduler)
        encoded.append({work.sequence.request.id: len(work.tokens) for work in works})
        record(works)
    assert encoded == [
        {"a": 2, "b": 6},
        {"a": 0, "b": 8},
        {"a": 0, "b": 6, "c": 2},
        {"a": 0, "b": 0, "c": 1},
        {"a": 0, "b": 0, "c": 0},
    ]


def deciding(name, reads):
    read = Read([3], [1], [LabelSlot(0, [1, 2])])
    decision = Decision([read] * reads)
    return Sequence.start(GenerateRequest(name, [1], 1, Sampling(seed=0), decision=decision))


def test_a_pass_has_at_most_one_canvas_for_each_place_of_the_batch():
    sequences = [*(deciding(f"d{i}", reads=9) for i in range(3)), sequence("a")]
    scheduler = Scheduler(prefill_chunk=100, max_active=6)
    for each in sequences:
        scheduler.add(each, now=0)
    works = next_pass(scheduler)
    assert [len(work.reads) or work.denoise for work in works] == [3, 1, 1, True]


def test_a_long_prompt_does_not_delay_the_steps_of_another_request():
    running, long = sequence("a"), sequence("b", [1] * 100)
    scheduler = scheduler_with(running, long, max_active=2)
    for _ in range(10):
        works = next_pass(scheduler)
        assert next(w for w in works if w.sequence is running).denoise
        record(works)


def test_each_started_sequence_is_reported_once():
    first, second, third = sequence("a"), sequence("b"), sequence("c")
    scheduler = scheduler_with(first, second, third, max_active=2)
    assert scheduler.rearrange(0).started == [first, second]
    assert scheduler.rearrange(0).started == []
    scheduler.remove(second)
    assert scheduler.rearrange(0).started == [third]


def test_a_waiting_request_can_be_removed():
    first, second, third = sequence("a"), sequence("b"), sequence("c")
    scheduler = scheduler_with(first, second, third)
    next_pass(scheduler)
    scheduler.remove(second)
    scheduler.remove(first)
    assert sequences_in(next_pass(scheduler)) == [third]


def test_waiting_and_running_are_counted():
    first = sequence("a")
    scheduler = scheduler_with(first, sequence("b"), sequence("c"))
    assert (scheduler.waiting, scheduler.running) == (3, 0)
    next_pass(scheduler)
    assert (scheduler.waiting, scheduler.running) == (2, 1)
    scheduler.remove(first)
    assert (scheduler.waiting, scheduler.running) == (2, 0)


def test_find_returns_waiting_and_running_requests_but_no_removed_ones():
    first, second = sequence("a"), sequence("b")
    scheduler = scheduler_with(first, second)
    next_pass(scheduler)
    assert scheduler.find("a") is first
    assert scheduler.find("b") is second
    scheduler.remove(first)
    assert scheduler.find("a") is None


def test_an_image_larger_than_a_chunk_delays_other_prompts_but_no_steps():
    picture = Image(0, 20, 1, 1, b"")
    with_image = Sequence.start(GenerateRequest("a", [3] * 21, 10, Sampling(0), images=[picture]))
    long, denoising = sequence("b", prompt=[5] * 20), sequence("c")
    scheduler = scheduler_with(denoising, max_active=3)
    record(next_pass(scheduler))
    for each in (with_image, long):
        scheduler.add(each, now=0)
    works = next_pass(scheduler)
    assert [(work.sequence, len(work.tokens), work.denoise) for work in works] == [
        (denoising, 0, True),
        (with_image, 20, False),
    ]
    record(works)
    assert [len(work.tokens) for work in next_pass(scheduler)] == [0, 1, 7]
