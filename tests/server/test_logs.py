"""The log of a real server, as text and as JSON."""

import json
from uuid import uuid4

import pytest

from tests.polling import wait_until

SECRET = "Xylophonquark"  # a word of every prompt here, which an answer with `echo` repeats


def ask(server, request_id="my-request", **options):
    messages = [{"role": "user", "content": f"Say {SECRET}"}]
    body = {"messages": messages, "max_tokens": 40, "seed": 1, **options}
    headers = {"x-request-id": request_id}
    return server.http.post("/v1/chat/completions", json=body, headers=headers)


def lines_of(server):
    """Returns the complete lines of the log. The server may be writing another one."""
    return server.log.read_text().rpartition("\n")[0].splitlines()


def objects(lines):
    return [json.loads(line) for line in lines]


def answers(lines, request_id):
    """Returns the lines of the answers to a request."""
    return [line for line in lines if "app.answers" in line and request_id in line]


def settled_lines(server):
    """Returns the lines of a running server's log when all requests so far have theirs."""
    last = f"test-{uuid4()}"
    ask(server, last, max_tokens=1)
    wait_until(lambda: answers(lines_of(server), last))
    return lines_of(server)


def test_every_line_of_a_json_log_is_one_object_whichever_component_wrote_it(start_server):
    server = start_server(EASEL_LOG_FORMAT="json").wait_until_ready()
    ask(server)
    server.kill_worker()
    wait_until(lambda: not server.is_ready())
    server.wait_until_ready()
    assert server.stop() == 0
    lines = objects(lines_of(server))
    always = {"time", "level", "logger", "request_id", "message"}
    assert all(always <= line.keys() for line in lines)
    assert any("Easel listens on" in line["message"] for line in lines)
    assert {"uvicorn.error", "app.serve", "app.answers", "app.engine_client.worker"} <= {
        line["logger"] for line in lines
    }


def test_a_json_log_has_one_line_with_figures_for_each_answer(shared_server):
    server = shared_server(EASEL_LOG_FORMAT="json")
    request_id = f"test-{uuid4()}"
    answer = ask(server, request_id, n=2).json()
    lines = objects(answers(settled_lines(server), request_id))
    assert len(lines) == 2
    assert {line["logger"] for line in lines} == {"app.answers"}
    assert {line["request_id"] for line in lines} == {request_id}
    assert {line["route"] for line in lines} == {"/v1/chat/completions"}
    assert {line["outcome"] for line in lines} <= {"stop", "length"}
    assert {line["prompt_tokens"] for line in lines} == {answer["usage"]["prompt_tokens"]}
    for name, expected in (
        ("completion_tokens", answer["usage"]["completion_tokens"]),
        ("blocks", answer["diffusion"]["blocks"]),
        ("denoising_steps", answer["diffusion"]["denoising_steps"]),
    ):
        assert sum(line[name] for line in lines) == expected
    assert all(0 < line["time_to_first_block_s"] <= line["duration_s"] for line in lines)


def test_a_text_log_has_one_line_with_figures_as_pairs_for_an_answer(server):
    request_id = f"test-{uuid4()}"
    ask(server, request_id)
    (line,) = answers(settled_lines(server), request_id)
    figures = dict(pair.split("=") for pair in line.split(f"[{request_id}] answer ")[1].split(" "))
    assert figures["route"] == "/v1/chat/completions"
    assert int(figures["blocks"]) > 0


@pytest.mark.parametrize("level", [{}, {"EASEL_LOG_LEVEL": "debug"}], ids=["info", "debug"])
@pytest.mark.parametrize("form", [{}, {"EASEL_LOG_FORMAT": "json"}], ids=["text", "json"])
def test_prompts_and_answers_are_never_logged(shared_server, level, form):
    server = shared_server(**level, **form)
    before = len(lines_of(server))
    whole = ask(server).json()["choices"][0]["message"]["content"]
    stream = ask(server, stream=True).text
    assert ask(server, messages=[{"role": SECRET}]).status_code == 400
    body = {"prompt": SECRET, "echo": True, "max_tokens": 4, "stream": True}
    echoed = server.http.post("/v1/completions", json=body).text
    assert SECRET in echoed
    log = "\n".join(settled_lines(server)[before:])
    assert "app.answers" in log
    assert SECRET not in log
    longest = max(whole.split(), key=len)
    assert longest in stream
    assert longest not in log


def test_lines_that_the_worker_writes_to_stderr_are_lines_of_the_log(shared_server):
    server = shared_server(EASEL_LOG_FORMAT="json")
    worker = server.worker_pid()
    with open(f"/proc/{worker}/fd/2", "w") as stderr:  # as a library in the worker would print
        stderr.write(
            "2026-01-01 10:00:00,000 ERROR engine.denoise.graphs: it failed\nTraceback:\n  why\n"
        )
    message = "it failed\nTraceback:\n  why"

    def lines():
        return [line for line in objects(lines_of(server)) if line["message"] == message]

    (failed,) = wait_until(lines)
    assert (failed["level"], failed["logger"]) == ("error", "engine.denoise.graphs")
