"""Requests outlive the worker: which ones the next worker gets, and which ones fail."""

import pytest

from app.engine_client.open_requests import OpenRequests
from engine.messages import (
    Block,
    Cancelled,
    Failed,
    GenerateRequest,
    Heartbeat,
    Sampling,
    Thought,
)


@pytest.fixture
def requests():
    return OpenRequests()


def add(requests, *names):
    return {n: requests.add(GenerateRequest(n, [1, 2], 100, Sampling(seed=0))) for n in names}


def due(requests):
    return [request.id for request in requests.due()]


def block(name, index, *tokens, reason=None):
    return Block(name, index, list(tokens), 1, duration_s=0.1, finish_reason=reason)


def messages(opened):
    return [opened.answers.get_nowait() for _ in range(opened.answers.qsize())]


def test_each_request_is_given_once_in_the_order_of_arrival(requests):
    add(requests, "a", "b")
    assert due(requests) == ["a", "b"]
    assert due(requests) == []


def test_the_next_worker_gets_a_request_with_the_delivered_part_of_its_answer(requests):
    opened = add(requests, "a")["a"]
    list(requests.due())
    requests.deliver(block("a", 0, 7, 8))
    requests.deliver(block("a", 1, 9))
    requests.worker_died()
    (again,) = requests.due()
    assert (again.delivered, again.delivered_blocks) == ([7, 8, 9], 2)
    requests.deliver(block("a", 2, 10, reason="stop"))
    assert [m.index for m in messages(opened)] == [0, 1, 2]
    assert len(requests) == 0


def test_a_request_during_which_the_worker_dies_twice_fails(requests):
    opened = add(requests, "a")["a"]
    for _ in range(2):
        assert due(requests) == ["a"]
        requests.worker_died()
    assert [type(m) for m in messages(opened)] == [Failed]
    assert due(requests) == []


def test_a_block_between_two_deaths_resets_the_count(requests):
    opened = add(requests, "a")["a"]
    for index in range(3):
        assert due(requests) == ["a"]
        requests.deliver(block("a", index, 5))
        requests.worker_died()
    assert due(requests) == ["a"]
    assert not any(isinstance(m, Failed) for m in messages(opened))


def test_only_the_request_that_kills_the_worker_fails(requests):
    opened = add(requests, "a", "killer", "b")
    assert due(requests) == ["a", "killer", "b"]
    requests.beat(Heartbeat(["a", "killer", "b"], 3))
    requests.worker_died()
    assert due(requests) == ["a"]  # alone, until it has ended
    requests.deliver(block("a", 0, 5))
    assert due(requests) == []
    requests.deliver(block("a", 1, 5, reason="stop"))
    assert due(requests) == ["killer"]
    requests.worker_died()
    assert [type(m) for m in messages(opened["killer"])] == [Failed]
    assert due(requests) == ["b"]
    requests.deliver(block("b", 0, 5, reason="stop"))
    assert not any(isinstance(m, Failed) for each in ("a", "b") for m in messages(opened[each]))


def test_requests_that_kill_the_worker_only_together_both_end(requests):
    opened = add(requests, "a", "b")
    list(requests.due())
    requests.beat(Heartbeat(["a", "b"], 2))
    requests.worker_died()
    for name in ("a", "b"):
        assert due(requests) == [name]
        requests.deliver(block(name, 0, 5))
        requests.deliver(block(name, 1, 5, reason="stop"))
    assert not any(isinstance(m, Failed) for each in opened.values() for m in messages(each))


def test_other_requests_wait_until_no_suspect_is_open(requests):
    add(requests, "a", "b", "c")
    list(requests.due())
    requests.beat(Heartbeat(["a", "b"], 3))
    requests.worker_died()
    assert due(requests) == ["a"]
    add(requests, "new")
    assert due(requests) == []
    requests.cancel("a")
    assert due(requests) == []  # the worker may still have it in a pass
    requests.deliver(Cancelled("a"))
    assert due(requests) == ["b"]
    requests.deliver(Failed("b", "no"))
    assert due(requests) == ["c", "new"]


def test_only_requests_in_the_pass_and_those_not_taken_in_are_suspects(requests):
    opened = add(requests, "in the pass", "waiting", "not taken in", "not given")
    list(zip(range(3), requests.due(), strict=False))
    requests.beat(Heartbeat(["in the pass"], 2))
    requests.worker_died()
    assert {name: each.suspect for name, each in opened.items()} == {
        "in the pass": True,
        "waiting": False,
        "not taken in": True,
        "not given": False,
    }
    assert [each.deaths for each in opened.values()] == [1, 0, 1, 0]


def test_all_requests_are_suspects_if_the_last_heartbeat_is_about_others(requests):
    opened = add(requests, "ended", "a", "b")
    list(requests.due())
    requests.beat(Heartbeat(["ended"], 3))
    requests.deliver(block("ended", 0, 5, reason="stop"))
    requests.worker_died()
    assert opened["a"].suspect
    assert opened["b"].suspect


def test_a_cancel_is_unanswered_until_the_worker_answers_it_or_dies(requests):
    add(requests, "a", "b", "c")
    list(requests.due())
    assert requests.unanswered == []
    requests.cancel("a")
    requests.cancel("b")
    assert requests.unanswered == ["a", "b"]
    requests.deliver(Cancelled("a"))
    assert requests.unanswered == ["b"]
    requests.worker_died()
    assert requests.unanswered == []


def test_a_cancelled_request_ends_when_the_worker_confirms_it_or_dies(requests):
    opened = add(requests, "given", "dying", "waiting")
    requests.deliver(block("waiting", 0, 5, reason="stop"))
    waiting = add(requests, "waiting")["waiting"]
    assert not requests.cancel("waiting")  # the worker never had it
    assert due(requests) == ["given", "dying"]
    assert requests.cancel("given")
    assert requests.cancel("dying")
    requests.deliver(Cancelled("given"))
    requests.worker_died()
    assert messages(opened["dying"]) == [Cancelled("dying")]
    assert messages(waiting) == []
    assert len(requests) == 0
    assert not requests.cancel("given")


def test_a_message_about_an_unknown_request_changes_nothing(requests):
    requests.deliver(block("gone", 0, 1))
    requests.deliver(block("gone", 1, 1, reason="stop"))
    assert len(requests) == 0


def test_all_requests_fail_when_there_will_be_no_worker(requests):
    opened = add(requests, "a", "b")
    list(requests.due())
    requests.fail_all("over")
    assert [messages(each) for each in opened.values()] == [
        [Failed("a", "over")],
        [Failed("b", "over")],
    ]


def thinking(request_id, delivered=()):
    thought = Thought(50, 51, [60, 61])
    return GenerateRequest(
        request_id, [1], 20, Sampling(0), thought=thought, delivered=list(delivered)
    )


def test_the_end_of_a_thought_outlives_the_worker(requests):
    opened = requests.add(thinking("abc-0"))
    due(requests)
    opened.end_thought()
    requests.worker_died()
    (again,) = requests.due()
    assert again.thought.ended


def test_the_open_choices_of_an_answer_are_found_by_its_id(requests):
    first, second = requests.add(thinking("abc-0")), requests.add(thinking("abc-1"))
    requests.add(thinking("def-0"))
    requests.add(thinking("decision"))
    assert requests.choices("abc") == [first, second]
    due(requests)
    requests.cancel("abc-0")
    assert requests.choices("abc") == [second]
    assert requests.choices("a") == requests.choices("") == []


@pytest.mark.parametrize(
    ("delivered", "may_think"),
    [
        ([], True),
        ([50, 60, 61, 7], True),
        ([50, 60, 61, 7, 51], True),  # another may follow
        ([50, 60, 61, 7, 51, 8], False),
        ([8, 50, 60, 61], True),
    ],
)
def test_an_answer_may_think_until_it_says_something(requests, delivered, may_think):
    assert requests.add(thinking("abc-0", delivered)).may_think == may_think
