"""Requests outlive the worker: who is given again, who is given up."""

import pytest

from app.engine_client.open_requests import OpenRequests
from engine.messages import Block, Done, Failed, GenerateRequest, Sampling


@pytest.fixture
def requests():
    return OpenRequests()


def add(requests, *names):
    return {n: requests.add(GenerateRequest(n, [1, 2], 100, Sampling(seed=0))) for n in names}


def due(requests):
    return [request.id for request in requests.due()]


def block(name, index, *tokens):
    return Block(name, index, list(tokens), denoising_steps=1, duration_s=0.1)


def told(opened):
    return [opened.answers.get_nowait() for _ in range(opened.answers.qsize())]


def test_everyone_is_given_once_in_the_order_of_arrival(requests):
    add(requests, "a", "b")
    assert due(requests) == ["a", "b"]
    assert due(requests) == []


def test_after_a_death_a_request_is_given_again_with_what_was_delivered(requests):
    opened = add(requests, "a")["a"]
    list(requests.due())
    requests.deliver(block("a", 0, 7, 8))
    requests.deliver(block("a", 1, 9))
    requests.worker_died()
    (again,) = requests.due()
    assert (again.delivered, again.delivered_blocks) == ([7, 8, 9], 2)
    requests.deliver(block("a", 2, 10))
    requests.deliver(Done("a", "stop"))
    assert [m.index for m in told(opened)[:-1]] == [0, 1, 2]
    assert len(requests) == 0


def test_a_request_of_which_the_worker_dies_twice_fails(requests):
    opened = add(requests, "a")["a"]
    for _ in range(2):
        assert due(requests) == ["a"]
        requests.worker_died()
    assert [type(m) for m in told(opened)] == [Failed]
    assert due(requests) == []


def test_a_block_between_two_deaths_clears_it(requests):
    opened = add(requests, "a")["a"]
    for index in range(3):
        assert due(requests) == ["a"]
        requests.deliver(block("a", index, 5))
        requests.worker_died()
    assert due(requests) == ["a"]
    assert not any(isinstance(m, Failed) for m in told(opened))


def test_of_several_only_the_one_that_kills_fails(requests):
    opened = add(requests, "a", "killer", "b")
    assert due(requests) == ["a", "killer", "b"]
    requests.worker_died()
    assert due(requests) == ["a"]  # on trial alone
    assert due(requests) == []
    requests.deliver(block("a", 0, 5))
    assert due(requests) == ["killer"]
    requests.worker_died()
    assert [type(m) for m in told(opened["killer"])] == [Failed]
    assert due(requests) == ["a"]
    requests.deliver(Done("a", "stop"))
    assert due(requests) == ["b"]
    requests.deliver(Done("b", "stop"))
    assert not any(isinstance(m, Failed) for each in ("a", "b") for m in told(opened[each]))


def test_who_comes_during_a_trial_does_not_wait_for_it(requests):
    add(requests, "a", "b")
    list(requests.due())
    requests.worker_died()
    assert due(requests) == ["a"]
    add(requests, "new")
    assert due(requests) == ["new"]


def test_a_cancelled_request_ends_with_the_worker_s_word_or_its_death(requests):
    opened = add(requests, "given", "dying", "waiting")
    requests.deliver(Done("waiting", "stop"))
    waiting = add(requests, "waiting")["waiting"]
    assert not requests.cancel("waiting")  # the worker never had it
    assert due(requests) == ["given", "dying"]
    assert requests.cancel("given")
    assert requests.cancel("dying")
    requests.deliver(Done("given", "cancelled"))
    requests.worker_died()
    assert told(opened["dying"]) == [Done("dying", "cancelled")]
    assert told(waiting) == []
    assert len(requests) == 0
    assert not requests.cancel("given")


def test_a_message_about_nobody_changes_nothing(requests):
    requests.deliver(block("gone", 0, 1))
    requests.deliver(Done("gone", "stop"))
    assert len(requests) == 0


def test_all_fail_when_there_will_be_no_worker(requests):
    opened = add(requests, "a", "b")
    list(requests.due())
    requests.fail_all("over")
    assert [told(each) for each in opened.values()] == [
        [Failed("a", "over")],
        [Failed("b", "over")],
    ]
