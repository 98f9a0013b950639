from engine.messages import GenerateRequest, Image, Sampling
from engine.scheduler import Scheduler
from engine.sequence import Sequence, Step


def sequence(request_id, prompt=(1, 2), priority=0):
    sampling = Sampling(seed=0, priority=priority)
    return Sequence.start(GenerateRequest(request_id, list(prompt), 10, sampling))


def scheduler_with(*sequences, max_active=1):
    scheduler = Scheduler(prefill_chunk=8, max_active=max_active)
    for each in sequences:
        scheduler.add(each)
    return scheduler


def next_pass(scheduler):
    scheduler.start_waiting()
    return scheduler.next_pass()


def who(works):
    return [work.sequence for work in works]


def record(works):
    for work in works:
        step = Step([0], done=False) if work.denoise else None
        work.sequence.record(work, step, frozenset())


def test_an_idle_scheduler_has_no_pass():
    assert next_pass(scheduler_with()) == []


def test_requests_run_one_at_a_time_in_arrival_order_where_one_may_run():
    first, second = sequence("a"), sequence("b")
    scheduler = scheduler_with(first, second)
    assert who(next_pass(scheduler)) == [first]
    assert who(next_pass(scheduler)) == [first]
    scheduler.remove(first)
    assert who(next_pass(scheduler)) == [second]


def test_of_those_who_wait_the_lowest_priority_runs_first_then_the_earliest():
    waiting = [
        sequence(name, priority=p) for name, p in zip("abcde", (0, 5, -1, 0, -1), strict=True)
    ]
    scheduler, order = scheduler_with(*waiting), []
    while scheduler.waiting + scheduler.running:
        (running,) = who(next_pass(scheduler))
        order.append(running.request.id)
        scheduler.remove(running)
    assert order == ["c", "e", "a", "d", "b"]


def test_a_lower_priority_does_not_take_the_place_of_one_that_runs():
    running = sequence("a", priority=9)
    scheduler = scheduler_with(running)
    next_pass(scheduler)
    scheduler.add(sequence("b", priority=-9))
    assert who(next_pass(scheduler)) == [running]


def test_as_many_run_together_as_may_and_the_next_joins_when_one_leaves():
    first, second, third = sequence("a"), sequence("b"), sequence("c")
    scheduler = scheduler_with(first, second, third, max_active=2)
    assert who(next_pass(scheduler)) == [first, second]
    scheduler.remove(first)
    assert who(next_pass(scheduler)) == [second, third]


def test_a_pass_encodes_no_more_than_a_chunk_for_all_together():
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


def test_a_long_prompt_does_not_hold_up_another_request_s_steps():
    running, long = sequence("a"), sequence("b", [1] * 100)
    scheduler = scheduler_with(running, long, max_active=2)
    for _ in range(10):
        works = next_pass(scheduler)
        assert next(w for w in works if w.sequence is running).denoise
        record(works)


def test_those_who_start_are_told_once():
    first, second, third = sequence("a"), sequence("b"), sequence("c")
    scheduler = scheduler_with(first, second, third, max_active=2)
    assert scheduler.start_waiting() == [first, second]
    assert scheduler.start_waiting() == []
    scheduler.remove(second)
    assert scheduler.start_waiting() == [third]


def test_a_waiting_request_can_leave():
    first, second, third = sequence("a"), sequence("b"), sequence("c")
    scheduler = scheduler_with(first, second, third)
    next_pass(scheduler)
    scheduler.remove(second)
    scheduler.remove(first)
    assert who(next_pass(scheduler)) == [third]


def test_waiting_and_running_are_counted():
    first = sequence("a")
    scheduler = scheduler_with(first, sequence("b"), sequence("c"))
    assert (scheduler.waiting, scheduler.running) == (3, 0)
    next_pass(scheduler)
    assert (scheduler.waiting, scheduler.running) == (2, 1)
    scheduler.remove(first)
    assert (scheduler.waiting, scheduler.running) == (2, 0)


def test_a_request_is_found_while_it_waits_and_while_it_runs_and_not_after():
    first, second = sequence("a"), sequence("b")
    scheduler = scheduler_with(first, second)
    next_pass(scheduler)
    assert scheduler.find("a") is first
    assert scheduler.find("b") is second
    scheduler.remove(first)
    assert scheduler.find("a") is None


def test_an_image_larger_than_a_chunk_leaves_no_room_and_takes_none_from_steps():
    picture = Image(0, 20, 1, 1, b"")
    seeing = Sequence.start(GenerateRequest("a", [3] * 21, 10, Sampling(0), images=[picture]))
    reading, stepping = sequence("b", prompt=[5] * 20), sequence("c")
    scheduler = scheduler_with(stepping, max_active=3)
    record(next_pass(scheduler))
    for each in (seeing, reading):
        scheduler.add(each)
    works = next_pass(scheduler)
    assert [(work.sequence, len(work.tokens), work.denoise) for work in works] == [
        (stepping, 0, True),
        (seeing, 20, False),
    ]
    record(works)
    assert [len(work.tokens) for work in next_pass(scheduler)] == [0, 1, 7]
