"""Starting, stopping, dying and going away, with real processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

LONG = {"messages": [{"role": "user", "content": "Count"}], "max_tokens": 1500, "seed": 1}


def ended(http):
    """How many requests have ended, by outcome."""
    lines = http.get("/metrics").text.splitlines()
    return {
        line.split('"')[1]: float(line.split()[-1])
        for line in lines
        if line.startswith("easel_requests_total{")
    }


def in_flight(http):
    return "easel_requests_in_flight 0.0" not in http.get("/metrics").text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_the_worker(server, http, stream):
    before = ended(http).get("cancelled", 0)
    worker = server.worker_pid()
    os.kill(worker, signal.SIGSTOP)  # holds the request in the middle for certain
    try:
        with (
            httpx.Client(base_url=server.url) as leaving,
            pytest.raises(httpx.ReadTimeout),
            leaving.stream(
                "POST",
                "/v1/chat/completions",
                json={**LONG, "stream": stream},
                timeout=httpx.Timeout(10, read=1),
            ) as response,
        ):
            list(response.iter_lines())
    finally:
        os.kill(worker, signal.SIGCONT)
    # The next request waits for the worker, so it comes after the cancel.
    http.post("/v1/chat/completions", json={**LONG, "max_tokens": 1}).raise_for_status()
    assert ended(http)["cancelled"] == before + 1
    assert not in_flight(http)


def test_more_requests_than_the_queue_holds_are_answered_429(start_server):
    server = start_server(EASEL_MAX_QUEUE="1").wait_until_ready()
    url = f"{server.url}/v1/chat/completions"
    worker = server.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    with httpx.stream("POST", url, json={**LONG, "stream": True}, timeout=60) as first:
        next(first.iter_lines())  # it has been taken
        refused = httpx.post(url, json=LONG)
        os.kill(worker, signal.SIGCONT)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_streams_that_come_at_once_are_turned_away_by_a_status(start_server, path):
    server = start_server(EASEL_MAX_QUEUE="3").wait_until_ready()
    text = {"input": "Count"} if path == "responses" else {"messages": LONG["messages"]}
    worker = server.worker_pid()

    async def ask(http):
        async with http.stream("POST", f"/v1/{path}", json={**text, "stream": True}) as response:
            admitted.append(response.status_code == 200)
            if len(admitted) == 12:
                os.kill(worker, signal.SIGCONT)
            return response.status_code, '"error":{' in (await response.aread()).decode()

    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        for _ in range(2):  # places are given back
            admitted = []
            os.kill(worker, signal.SIGSTOP)
            told = await asyncio.gather(*[ask(http) for _ in range(12)])
            assert sorted(told) == [(200, False)] * 3 + [(429, True)] * 9


def test_a_full_queue_turns_no_question_away_that_needs_no_place(start_server):
    server = start_server(EASEL_MAX_QUEUE="1").wait_until_ready()
    worker = server.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json={**LONG, "stream": True}, timeout=60) as first:
        next(first.iter_lines())
        tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": "one two"}).json()["tokens"]
        text = httpx.post(f"{server.url}/detokenize", json={"tokens": tokens}).json()["prompt"]
        os.kill(worker, signal.SIGCONT)
    assert "one two" in text


@pytest.mark.parametrize("blocks_before", [0, 3])
def test_a_killed_worker_s_requests_go_on_where_they_stood(start_server, blocks_before):
    server = start_server().wait_until_ready()
    body = {**LONG, "stream": True, "max_tokens": 400}

    def events_of(response):
        lines = (line[6:] for line in response.iter_lines() if line.startswith("data: "))
        return (json.loads(line) for line in lines if line != "[DONE]")

    def content(events):
        return "".join(e["choices"][0]["delta"].get("content", "") for e in events)

    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        undisturbed = content(events_of(response))
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        events = events_of(response)
        first = [next(events) for _ in range(1 + blocks_before)]
        os.kill(server.worker_pid(), signal.SIGKILL)
        rest = list(events)
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
    assert content([*first, *rest]) == undisturbed
    assert rest[-1]["choices"][0]["finish_reason"] in ("length", "stop")
    metrics = httpx.get(f"{server.url}/metrics").text
    assert "easel_worker_starts_total 2.0" in metrics


def test_without_a_worker_the_server_is_not_ready(start_server):
    server = start_server().wait_until_ready()
    os.kill(server.worker_pid(), signal.SIGKILL)
    with httpx.Client(base_url=server.url) as http:
        while http.get("/health/ready").status_code == 200:
            time.sleep(0.01)
        refused = http.post("/v1/chat/completions", json=LONG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"]
    server.wait_until_ready()


def test_a_request_that_kills_the_worker_twice_is_given_up(start_server):
    server = start_server(EASEL_PREFILL_CHUNK="1").wait_until_ready()
    # Read token by token, so that its first block is seconds away.
    body = {"prompt": [300] * 1500, "max_tokens": 10, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=90) as response:
        for _ in range(2):
            server.wait_until_ready()
            time.sleep(0.3)  # it has been given to the worker
            os.kill(server.worker_pid(), signal.SIGKILL)
            while httpx.get(f"{server.url}/health/ready").status_code == 200:
                time.sleep(0.01)
        error, done = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert json.loads(error)["error"]["code"] == "generation_failed"
    assert "died twice" in json.loads(error)["error"]["message"]
    assert done == "[DONE]"
    server.wait_until_ready()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_stream_finishes_at_the_end_and_nothing_new_begins(start_server, number):
    server = start_server().wait_until_ready()
    url = f"{server.url}/v1/chat/completions"
    body = {**LONG, "stream": True, "max_tokens": 300}
    worker = server.worker_pid()
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        events = (line[6:] for line in response.iter_lines() if line.startswith("data: "))
        next(events)
        os.kill(worker, signal.SIGSTOP)  # so that it can't have finished before
        server.process.send_signal(number)
        while True:
            try:
                httpx.get(f"{server.url}/health/live")
            except httpx.ConnectError:
                break
            except (httpx.RemoteProtocolError, httpx.ReadError):
                continue  # it had connected, and not yet been heard, when the server closed
            time.sleep(0.01)
        os.kill(worker, signal.SIGCONT)
        *_, last, done = events
    assert done == "[DONE]"
    assert json.loads(last)["choices"][0]["finish_reason"] in ("length", "stop")
    assert server.process.wait(60) == 0
    assert not Path(f"/proc/{worker}").exists()


def test_a_stream_that_outlives_the_grace_of_a_shutdown_ends_with_an_error(start_server):
    server = start_server(EASEL_SHUTDOWN_GRACE_S="1").wait_until_ready()
    body = {**LONG, "stream": True}
    worker = server.worker_pid()
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", json=body, timeout=60
    ) as response:
        events = (line[6:] for line in response.iter_lines() if line.startswith("data: "))
        next(events)
        os.kill(worker, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        *_, error, done = events
    assert json.loads(error)["error"]["code"] == "not_ready"
    assert done == "[DONE]"
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log.read_text()


def test_a_killed_front_end_takes_its_worker_with_it(start_server):
    server = start_server().wait_until_ready()
    worker = os.pidfd_open(server.worker_pid())
    server.process.kill()
    server.process.wait()
    import select

    assert select.select([worker], [], [], 30)[0], "the worker outlived the front end"
    os.close(worker)


def serve_with(**variables):
    return subprocess.run(
        [sys.executable, "-m", "app.cli", "serve"],
        env={**os.environ, "EASEL_PORT": "0", **variables},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"EASEL_PORT": "many"}, "EASEL_PORT"),
        ({"EASEL_COLOUR": "red"}, "EASEL_COLOUR: no such setting"),
        (
            {"EASEL_PROFILE": "fast"},
            "EASEL_PROFILE: Value error, 'fast' is not a profile; available:",
        ),
        ({"EASEL_MODEL": "/nowhere"}, "/nowhere"),
    ],
)
def test_a_server_that_cannot_start_says_why_and_fails(variables, complaint):
    result = serve_with(**variables)
    assert result.returncode != 0
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken_is_named_before_anything_is_loaded(server):
    port = server.url.rpartition(":")[2]
    result = serve_with(EASEL_MODEL="/nowhere", EASEL_PORT=port)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines() == [
        f"easel: cannot listen on 127.0.0.1 port {port}: Address already in use "
        "(settings: EASEL_HOST, EASEL_PORT)"
    ]


def test_a_worker_that_cannot_start_ends_the_server(model_folder, tmp_path):
    for file in model_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    result = serve_with(EASEL_MODEL=str(tmp_path))
    assert result.returncode == 1
    assert "weight files are missing" in result.stderr
    assert "Traceback" not in result.stderr
