"""The order of requests with different priorities, and the time limits of requests."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

LONG = {"messages": [{"role": "user", "content": "Count"}], "ignore_eos": True, "seed": 1}
JOB = {**LONG, "max_tokens": 1900, "priority": 10}


@pytest.fixture(scope="module")
def url(server):
    return f"{server.url}/v1/chat/completions"


def events_of(response):
    lines = (line[6:] for line in response.iter_lines() if line.startswith("data: "))
    return (json.loads(line) for line in lines if line != "[DONE]")


def content(events):
    return "".join(e["choices"][0]["delta"].get("content") or "" for e in events)


@contextmanager
def streaming(url, body, key="none"):
    """Yields an iterator over the chunks of a streamed answer that follow the role's chunk."""
    headers, body = {"authorization": f"Bearer {key}"}, {**body, "stream": True}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as response:
        events = events_of(response)
        next(events)
        yield events


def test_an_answer_to_a_person_is_finished_before_the_next_block_of_a_job(server):
    check_that_the_person_goes_first(server, JOB)


def test_requests_without_a_priority_have_the_priority_of_their_key(shared_server):
    server = shared_server(EASEL_API_KEY="person, agents priority=10")
    job = {name: value for name, value in JOB.items() if name != "priority"}
    check_that_the_person_goes_first(server, job, job_key="agents", person_key="person")
    # A request may have a worse priority than its key.
    check_that_the_person_goes_first(server, {**JOB, "priority": 1}, "person", "person")
    # It can't have a better one.
    check_that_the_person_goes_first(server, {**JOB, "priority": -5}, "agents", "person")


@pytest.mark.parametrize(
    ("key", "priority", "ignored"),
    [
        ("agents", 9, "priority"),
        ("agents", -5, "priority"),
        ("agents", 10, None),
        ("agents", 11, None),
        ("agents", None, None),
        ("person", -1, "priority"),
        ("person", 0, None),
    ],
)
def test_a_better_priority_than_that_of_the_key_is_named_as_ignored(
    shared_server, key, priority, ignored
):
    server = shared_server(EASEL_API_KEY="person, agents priority=10")
    body = {**LONG, "max_tokens": 1, "priority": priority}
    headers = {"authorization": f"Bearer {key}"}
    for path in ("/v1/chat/completions", "/v1/messages"):
        answer = server.http.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.headers.get("x-easel-ignored")) == (200, ignored)


def test_requests_without_keys_have_any_priority(http):
    answer = http.post("/v1/chat/completions", json={**LONG, "max_tokens": 1, "priority": -5})
    assert "x-easel-ignored" not in answer.headers


def check_that_the_person_goes_first(server, job_body, job_key="none", person_key="none"):
    """Send a person's request while a job runs, and check the order in which blocks arrive.

    It counts the job's blocks and not seconds, and the worker is stopped while the person's request
    is on its way, so the speed of the machine does not matter.
    """
    url = f"{server.url}/v1/chat/completions"
    arrived = threading.Event()
    job_blocks = []  # the time at which each arrived

    def job():
        with streaming(url, {**job_body, "n": 4}, job_key) as events:
            for _ in events:
                job_blocks.append(time.monotonic())
                if len(job_blocks) == 8:
                    arrived.set()

    with ThreadPoolExecutor() as pool, ExitStack() as stream:
        running = pool.submit(job)
        assert arrived.wait(60)
        with server.stopped_worker():
            person = streaming(url, {**LONG, "max_tokens": 200}, person_key)
            events = stream.enter_context(person)
            asked_at = time.monotonic()
        next(events)
        first_at = time.monotonic()
        *_, last = events
        ended_at = time.monotonic()
        running.result()
    assert last["choices"][0]["finish_reason"] == "length"
    # Blocks that were on the device or on their way when the person's request came still arrive.
    assert sum(first_at < at < ended_at for at in job_blocks) == 0
    assert sum(asked_at < at < first_at for at in job_blocks) <= 8
    assert sum(at > ended_at for at in job_blocks) > 50


def test_jobs_that_gave_way_give_the_same_answers_as_undisturbed_jobs(url):
    job = {**JOB, "max_tokens": 400}
    with streaming(url, job) as events:
        undisturbed = content(events)
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(whole, url, job) for _ in range(5)]
        for _ in range(10):
            whole(url, {**LONG, "max_tokens": 40})
        assert {each.result() for each in jobs} == {undisturbed}


def whole(url, body):
    answer = httpx.post(url, json=body, timeout=60)
    return answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_exceeds_its_timeout_ends_with_an_error(server, url, http, stream):
    with server.stopped_worker():
        body = {**LONG, "timeout": 0.3, "stream": stream}
        response = httpx.post(url, json=body, timeout=60)
    if stream:
        *_, error, done = [
            line[6:] for line in response.text.splitlines() if line.startswith("data: ")
        ]
        assert done == "[DONE]"
        error = json.loads(error)["error"]
    else:
        assert response.status_code == 504
        assert response.headers["x-should-retry"] == "false"
        error = response.json()["error"]
    assert (error["code"], error["type"]) == ("deadline_exceeded", "timeout_error")
    # The worker gets this request after the cancel, so it has handled that when it answers.
    whole(url, {**LONG, "max_tokens": 1})
    assert server.in_flight() == 0
    assert server.ended()["timeout"] > 0


def test_the_timeout_of_the_server_limits_requests_without_a_timeout(shared_server):
    server = shared_server(EASEL_REQUEST_TIMEOUT_S="3")
    with server.stopped_worker():
        response = server.http.post("/v1/chat/completions", json=LONG)
    assert response.status_code == 504


def test_a_refused_request_gets_a_measured_time_to_wait(limited_server):
    limited_server.wait_until_idle()
    url = f"{limited_server.url}/v1/chat/completions"
    short = {**LONG, "max_tokens": 32}
    with ThreadPoolExecutor() as pool:
        for _ in range(5):
            list(pool.map(lambda _: whole(url, short), range(3)))
    with ExitStack() as stream:
        with limited_server.stopped_worker():
            events = stream.enter_context(streaming(url, {**short, "n": 3}))
            refused = httpx.post(url, json=LONG)
        list(events)
    assert refused.status_code == 429
    # Answers of one block end many times a second here, so the first guess, 1 s, was corrected.
    assert int(refused.headers["retry-after-ms"]) < 1000
    assert int(refused.headers["retry-after"]) == 1
