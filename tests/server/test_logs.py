"""The log of a real server, in both forms."""

import json
import os
import signal

import httpx
import pytest

SECRET = "Xylophonquark"  # in every prompt here, and echoed in an answer


def ask(server, **more):
    messages = [{"role": "user", "content": f"Say {SECRET}"}]
    body = {"messages": messages, "max_tokens": 40, "seed": 1, **more}
    headers = {"x-request-id": "my-request"}
    url = f"{server.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=60)


def objects(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def answers(log):
    return [line for line in objects(log) if line["logger"] == "app.answers"]


def test_every_line_is_one_json_object_the_worker_s_and_uvicorn_s_too(start_server):
    server = start_server(EASEL_LOG_FORMAT="json").wait_until_ready()
    ask(server)
    os.kill(server.worker_pid(), signal.SIGKILL)
    while httpx.get(f"{server.url}/health/ready").status_code == 200:
        pass
    server.wait_until_ready()
    assert server.stop() == 0
    lines = objects(server.log)
    always = {"time", "level", "logger", "request_id", "message"}
    assert all(always <= line.keys() for line in lines)
    assert any("Easel listens on" in line["message"] for line in lines)
    assert {"uvicorn.error", "app.cli", "app.answers", "app.engine_client.worker"} <= {
        line["logger"] for line in lines
    }


def test_an_answer_is_one_line_with_its_figures(start_server):
    server = start_server(EASEL_LOG_FORMAT="json").wait_until_ready()
    answer = ask(server, n=2).json()
    assert server.stop() == 0
    lines = answers(server.log)
    assert len(lines) == 2
    assert {line["request_id"] for line in lines} == {"my-request"}
    assert {line["route"] for line in lines} == {"/v1/chat/completions"}
    assert {line["outcome"] for line in lines} <= {"stop", "length"}
    assert {line["prompt_tokens"] for line in lines} == {answer["usage"]["prompt_tokens"]}
    for name, told in (
        ("completion_tokens", answer["usage"]["completion_tokens"]),
        ("blocks", answer["diffusion"]["blocks"]),
        ("denoising_steps", answer["diffusion"]["denoising_steps"]),
    ):
        assert sum(line[name] for line in lines) == told
    assert all(0 < line["time_to_first_block_s"] <= line["duration_s"] for line in lines)


def test_as_text_an_answer_s_figures_are_pairs(start_server):
    server = start_server().wait_until_ready()
    ask(server)
    assert server.stop() == 0
    (line,) = [line for line in server.log.read_text().splitlines() if "app.answers" in line]
    head, *pairs = line.split("[my-request] answer ")[1].split(" ")
    figures = dict(pair.split("=") for pair in [head, *pairs])
    assert figures["route"] == "/v1/chat/completions"
    assert int(figures["blocks"]) > 0


@pytest.mark.parametrize("level", ["info", "debug"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_prompts_and_answers_are_never_logged(start_server, level, form):
    server = start_server(EASEL_LOG_LEVEL=level, EASEL_LOG_FORMAT=form).wait_until_ready()
    whole = ask(server).json()["choices"][0]["message"]["content"]
    stream = ask(server, stream=True).text
    assert ask(server, messages=[{"role": SECRET}]).status_code == 400
    body = {"prompt": SECRET, "echo": True, "max_tokens": 4, "stream": True}
    echoed = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).text
    assert SECRET in echoed
    assert server.stop() == 0
    log = server.log.read_text()
    assert "app.answers" in log
    assert SECRET not in log
    longest = max(whole.split(), key=len)
    assert longest in stream
    assert longest not in log


def test_what_the_worker_writes_to_stderr_becomes_a_line_of_the_log(start_server):
    server = start_server(EASEL_LOG_FORMAT="json").wait_until_ready()
    worker = server.worker_pid()
    with open(f"/proc/{worker}/fd/2", "w") as stderr:  # as a library in the worker would print
        stderr.write(
            "2026-01-01 10:00:00,000 ERROR engine.denoise.graphs: it failed\nTraceback:\n  why\n"
        )
    assert server.stop() == 0
    lines = {line["message"]: line for line in objects(server.log)}
    failed = lines["it failed\nTraceback:\n  why"]
    assert (failed["level"], failed["logger"]) == ("error", "engine.denoise.graphs")
