"""Who goes first, who has to wait, and for how long, through a real server."""

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

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
    """The chunks of a streamed answer behind the role's."""
    headers, body = {"authorization": f"Bearer {key}"}, {**body, "stream": True}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as response:
        events = events_of(response)
        next(events)
        yield events


def test_a_person_s_answer_is_whole_before_a_job_s_next_block(url):
    check_that_the_person_goes_first(url, JOB)


def test_a_key_s_priority_is_that_of_requests_that_have_none(start_server):
    server = start_server(EASEL_API_KEY="person, agents priority=10").wait_until_ready()
    job = {name: value for name, value in JOB.items() if name != "priority"}
    url = f"{server.url}/v1/chat/completions"
    check_that_the_person_goes_first(url, job, job_key="agents", person_key="person")
    # What a request says itself goes before what its key says.
    check_that_the_person_goes_first(url, {**JOB, "priority": 1}, "person", "person")


def check_that_the_person_goes_first(url, job_body, job_key="none", person_key="none"):
    """Counted in the job's blocks, not in seconds: the machine's speed is no matter."""
    arrived = threading.Event()
    job_blocks = []  # when each came

    def job():
        with streaming(url, {**job_body, "n": 4}, job_key) as events:
            for _ in events:
                job_blocks.append(time.monotonic())
                if len(job_blocks) == 8:
                    arrived.set()

    with ThreadPoolExecutor() as pool:
        running = pool.submit(job)
        arrived.wait(60)
        asked = time.monotonic()
        with streaming(url, {**LONG, "max_tokens": 200}, person_key) as events:
            next(events)
            first = time.monotonic()
            *_, last = events
            ended = time.monotonic()
        running.result()
    assert last["choices"][0]["finish_reason"] == "length"
    # What was on the device or on its way when the person's request came still arrives.
    assert sum(first < at < ended for at in job_blocks) == 0
    assert sum(asked < at < first for at in job_blocks) <= 8
    assert sum(at > ended for at in job_blocks) > 50


def test_jobs_that_gave_way_say_what_they_would_have_said(url):
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
def test_an_answer_that_takes_longer_than_it_may_ends_with_an_error(server, url, http, stream):
    worker = server.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    try:
        body = {**LONG, "timeout": 0.3, "stream": stream}
        response = httpx.post(url, json=body, timeout=60)
    finally:
        os.kill(worker, signal.SIGCONT)
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
    whole(url, {**LONG, "max_tokens": 1})  # behind the cancel
    assert "easel_requests_in_flight 0.0" in http.get("/metrics").text
    assert 'easel_requests_total{outcome="timeout"}' in http.get("/metrics").text


def test_the_server_s_own_time_limit_holds_where_a_request_has_none(start_server):
    server = start_server(EASEL_REQUEST_TIMEOUT_S="0.2").wait_until_ready()
    url = f"{server.url}/v1/chat/completions"
    worker = server.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    response = httpx.post(url, json=LONG, timeout=60)
    os.kill(worker, signal.SIGCONT)  # a stopped process would outlive the test
    assert response.status_code == 504


def test_who_is_turned_away_is_told_a_measured_time(start_server):
    server = start_server(EASEL_MAX_QUEUE="3").wait_until_ready()
    url = f"{server.url}/v1/chat/completions"
    short = {**LONG, "max_tokens": 32}
    with ThreadPoolExecutor() as pool:
        for _ in range(5):
            list(pool.map(lambda _: whole(url, short), range(3)))
    worker = server.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    with streaming(url, {**short, "n": 3}) as events:
        refused = httpx.post(url, json=LONG)
        os.kill(worker, signal.SIGCONT)
        list(events)
    assert refused.status_code == 429
    # Answers of one block end many times a second here: the first guess, 1 s, was corrected.
    assert int(refused.headers["retry-after-ms"]) < 1000
    assert int(refused.headers["retry-after"]) == 1
