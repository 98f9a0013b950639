"""Starts, ends, deaths and disconnects of real servers and workers."""

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.polling import wait_until
from tests.running_server import begun
from tests.server.test_errors import check_retry_header

LONG = {"messages": [{"role": "user", "content": "Count"}], "max_tokens": 1500, "seed": 1}


def data_of(response):
    """Returns an iterator over the data of a stream's events."""
    return (line[6:] for line in response.iter_lines() if line.startswith("data: "))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_the_worker(server, http, stream):
    before = server.ended()["cancelled"]
    with (
        server.stopped_worker(),  # so that the answer cannot have finished
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
    # The worker gets this request after the cancel, so it has handled that when it answers.
    http.post("/v1/chat/completions", json={**LONG, "max_tokens": 1}).raise_for_status()
    assert server.ended()["cancelled"] == before + 1
    assert server.in_flight() == 0


def test_more_requests_than_the_queue_holds_are_answered_429(limited_server):
    limited_server.wait_until_idle()
    url = f"{limited_server.url}/v1/chat/completions"
    with (
        limited_server.stopped_worker(),
        httpx.stream("POST", url, json={**LONG, "n": 3, "stream": True}, timeout=60) as first,
    ):
        _lines = begun(first)  # the request has been admitted
        refused = httpx.post(url, json=LONG)
    assert refused.status_code == 429
    check_retry_header(refused)
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_streams_that_exceed_the_queue_at_once_are_refused_with_a_status(
    limited_server, path
):
    limited_server.wait_until_idle()
    body = {"stream": True, "messages": LONG["messages"], "max_tokens": 60}
    if path == "responses":
        body = {"stream": True, "input": "Count", "max_output_tokens": 60}

    async with httpx.AsyncClient(base_url=limited_server.url, timeout=60) as http:
        for _ in range(2):  # after the first round its places in the queue are free again
            async with AsyncExitStack() as stack:
                with limited_server.stopped_worker():
                    streams = [http.stream("POST", f"/v1/{path}", json=body) for _ in range(12)]
                    responses = await asyncio.gather(*map(stack.enter_async_context, streams))
                bodies = await asyncio.gather(*[response.aread() for response in responses])
            answers = [
                (response.status_code, '"error":{' in content.decode())
                for response, content in zip(responses, bodies, strict=True)
            ]
            assert sorted(answers) == [(200, False)] * 3 + [(429, True)] * 9


def test_a_full_queue_refuses_no_request_that_needs_no_answer(limited_server):
    limited_server.wait_until_idle()
    url = f"{limited_server.url}/v1/chat/completions"
    with (
        limited_server.stopped_worker(),
        httpx.stream("POST", url, json={**LONG, "n": 3, "stream": True}, timeout=60) as first,
    ):
        _lines = begun(first)
        tokens = limited_server.http.post("/tokenize", json={"prompt": "one two"}).json()["tokens"]
        text = limited_server.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert "one two" in text


@pytest.mark.parametrize("blocks_before", [0, 3])
def test_requests_of_a_killed_worker_continue_from_their_last_block(start_server, blocks_before):
    server = start_server().wait_until_ready()
    body = {**LONG, "stream": True, "max_tokens": 400}

    def chunks_of(response):
        return (json.loads(data) for data in data_of(response) if data != "[DONE]")

    def content(chunks):
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        undisturbed = content(chunks_of(response))
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        chunks = chunks_of(response)
        first = [next(chunks) for _ in range(1 + blocks_before)]
        server.kill_worker()
        remaining = list(chunks)
        assert server.is_ready()
    assert content([*first, *remaining]) == undisturbed
    assert remaining[-1]["choices"][0]["finish_reason"] in ("length", "stop")
    assert server.metrics()[("easel_worker_starts_total",)] == 2


def test_a_server_without_a_worker_is_not_ready(start_server):
    server = start_server().wait_until_ready()
    server.kill_worker()
    wait_until(lambda: not server.is_ready())
    refused = server.http.post("/v1/chat/completions", json=LONG)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert refused.headers["retry-after"]
    server.wait_until_ready()


def test_a_request_that_kills_the_worker_twice_fails(start_server):
    server = start_server(EASEL_PREFILL_CHUNK="1").wait_until_ready()
    # The prompt is read token by token, so its first block is seconds away.
    body = {"prompt": [300] * 1500, "max_tokens": 10, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=90) as response:
        for _ in range(2):
            server.wait_until_ready()
            wait_until(lambda: server.metrics()[("easel_requests_running",)] == 1)
            server.kill_worker()
            wait_until(lambda: not server.is_ready())
        error, done = data_of(response)
    assert json.loads(error)["error"]["code"] == "worker_died"
    assert "died twice" in json.loads(error)["error"]["message"]
    assert done == "[DONE]"
    server.wait_until_ready()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_shuts_down_finishes_its_streams_and_accepts_no_more(start_server, number):
    server = start_server().wait_until_ready()
    url = f"{server.url}/v1/chat/completions"
    body = {**LONG, "stream": True, "max_tokens": 300}

    def refuses_connections():
        try:
            httpx.get(f"{server.url}/health/live")
        except httpx.ConnectError:
            return True
        except (httpx.RemoteProtocolError, httpx.ReadError):
            pass  # the server closed while the connection still waited to be accepted
        return False

    with httpx.stream("POST", url, json=body, timeout=60) as response:
        data = data_of(response)
        next(data)
        with server.stopped_worker() as worker:  # so that the answer cannot have finished
            server.process.send_signal(number)
            wait_until(refuses_connections)
        *_, last, done = data
    assert done == "[DONE]"
    assert json.loads(last)["choices"][0]["finish_reason"] in ("length", "stop")
    assert server.process.wait(60) == 0
    assert not Path(f"/proc/{worker}").exists()


def test_a_stream_that_begins_after_sigterm_runs_to_its_end_also_if_it_is_the_first(start_server):
    server = start_server().wait_until_ready()
    tasks = server.event_loop_tasks()
    body = json.dumps({**LONG, "stream": True, "max_tokens": 300}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.port))) as connection:
        connection.sendall(head.encode() + body[:10])
        wait_until(lambda: server.event_loop_tasks() > tasks)  # the request has its task
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Shutting down" in server.log.read_text())
        connection.sendall(body[10:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b'"finish_reason": "' in answer
    assert b"data: [DONE]" in answer
    assert server.process.wait(60) == 0


def test_a_stream_that_exceeds_the_grace_period_of_a_shutdown_ends_with_an_error(start_server):
    server = start_server(EASEL_SHUTDOWN_GRACE_S="1").wait_until_ready()
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json={**LONG, "stream": True}, timeout=60) as response:
        data = data_of(response)
        next(data)
        with server.stopped_worker():
            server.process.send_signal(signal.SIGTERM)
            *_, error, done = data
            assert server.process.wait(60) == 0  # it kills the worker, which is still stopped
    assert json.loads(error)["error"]["code"] == "not_ready"
    assert done == "[DONE]"
    assert "Traceback" not in server.log.read_text()


def test_the_worker_ends_when_the_front_end_is_killed(start_server):
    server = start_server().wait_until_ready()
    worker = os.pidfd_open(server.worker_pid())
    server.kill()
    assert select.select([worker], [], [], 30)[0], "the worker outlived the front end"
    os.close(worker)


def serve_with(**variables):
    return subprocess.run(
        [sys.executable, "-m", "app", "serve"],
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
def test_a_server_that_cannot_start_logs_the_reason_and_fails(variables, complaint):
    result = serve_with(**variables)
    assert result.returncode != 0
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_in_use_is_reported_before_anything_is_loaded(server):
    result = serve_with(EASEL_MODEL="/nowhere", EASEL_PORT=server.port)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines() == [
        f"easel: cannot listen on 127.0.0.1 port {server.port}: Address already in use "
        "(settings: EASEL_HOST, EASEL_PORT; port 0 takes any free one)"
    ]


def test_a_worker_that_cannot_start_ends_the_server(model_folder, tmp_path):
    for file in model_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    result = serve_with(EASEL_MODEL=str(tmp_path))
    assert result.returncode == 1
    assert "weight files are missing" in result.stderr
    assert "Traceback" not in result.stderr
