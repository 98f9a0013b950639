from engine.messages import GenerateRequest
from engine.scheduler import Scheduler
from engine.sequence import Sequence


def sequence(request_id):
    return Sequence.start(GenerateRequest(request_id, [1, 2], 10, seed=0))


def scheduler_with(*sequences):
    scheduler = Scheduler(prefill_chunk=8)
    for each in sequences:
        scheduler.add(each)
    return scheduler


def test_an_idle_scheduler_has_no_pass():
    assert scheduler_with().next_pass() is None


def test_requests_run_one_at_a_time_in_arrival_order():
    first, second = sequence("a"), sequence("b")
    scheduler = scheduler_with(first, second)
    assert scheduler.next_pass().sequence is first
    assert scheduler.next_pass().sequence is first
    scheduler.remove(first)
    assert scheduler.next_pass().sequence is second


def test_a_waiting_request_can_leave():
    first, second, third = sequence("a"), sequence("b"), sequence("c")
    scheduler = scheduler_with(first, second, third)
    scheduler.next_pass()
    scheduler.remove(second)
    scheduler.remove(first)
    assert scheduler.next_pass().sequence is third


def test_waiting_and_running_are_counted():
    first = sequence("a")
    scheduler = scheduler_with(first, sequence("b"), sequence("c"))
    assert (scheduler.waiting, scheduler.running) == (3, 0)
    scheduler.next_pass()
    assert (scheduler.waiting, scheduler.running) == (2, 1)
    scheduler.remove(first)
    assert (scheduler.waiting, scheduler.running) == (2, 0)


def test_a_request_is_found_while_it_waits_and_while_it_runs_and_not_after():
    first, second = sequence("a"), sequence("b")
    scheduler = scheduler_with(first, second)
    scheduler.next_pass()
    assert scheduler.find("a") is first
    assert scheduler.find("b") is second
    scheduler.remove(first)
    assert scheduler.find("a") is None
