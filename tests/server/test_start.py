"""What `easel` says when it cannot start, and how Ctrl-C ends it, as a user sees it in a shell."""

import os
import select
import signal
import subprocess
import sys

import httpx
import pytest

from tests.polling import wait_until

STREAM = {"messages": [{"role": "user", "content": "Count"}], "max_tokens": 1500, "stream": True}


def easel(*arguments, **variables):
    """Run a command until it ends. Returns its exit code and the lines of its stderr."""
    result = subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env={**os.environ, "EASEL_PORT": "0", **variables},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr.strip().splitlines()


def copy_without(folder, name, target):
    for file in folder.iterdir():
        if file.name != name:
            (target / file.name).write_bytes(file.read_bytes())
    return str(target)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_last_line_says_why_the_worker_refuses_to_start(model_folder, tmp_path, log_format):
    model = copy_without(model_folder, "model.safetensors", tmp_path)
    code, lines = easel("serve", "--model", model, EASEL_LOG_FORMAT=log_format)
    assert code == 1
    assert "the worker ended with exit code 3: " in lines[-1]
    assert "model.safetensors" in lines[-1]


def test_the_last_line_says_that_a_worker_was_killed_before_it_was_ready(start_server):
    server = start_server()
    wait_until(lambda: _has_worker(server))
    server.kill_worker()
    assert server.process.wait(60) == 1
    last = server.log.read_text().strip().splitlines()[-1]
    assert last.startswith("easel: the worker ended with exit code -9: it was killed, ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "the chat template can't be read: No such file or directory"),
        ("line 1\n{% if %}", "the chat template 'default' does not compile: line 2: Expected an e"),
    ],
)
def test_the_last_line_says_why_a_chat_template_cannot_be_used(tmp_path, text, reason):
    file = tmp_path / "template.jinja"
    if text is not None:
        file.write_text(text)
    code, lines = easel("serve", "--chat-template", str(file))
    assert code == 2
    assert len(lines) == 2  # the first says what is loaded
    assert lines[-1].startswith(f"easel: {file}: {reason}")


@pytest.mark.parametrize("model", ["./nowhere", "nowhere", "some-body/nowhere"])
def test_the_last_line_says_that_a_model_is_nowhere(model):
    code, lines = easel("serve", "--model", model, HF_HUB_OFFLINE="1")
    assert code == 2
    assert len(lines) == 2
    named = "it is not a folder, it was not downloaded" if "/n" in model[2:] else "there is no such"
    assert lines[-1].startswith(f"easel: model '{model}': {named}")


def test_a_folder_for_temporary_files_with_too_long_a_path_is_named(tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code, lines = easel("serve", TMPDIR=str(folder))
    assert code == 1
    assert lines[-1].startswith(f"easel: TMPDIR is {str(folder)!r}, ")


def _has_worker(server):
    try:
        return server.worker_pid()
    except IndexError:
        return None


def test_ctrl_c_ends_a_start_without_a_traceback(start_server):
    server = start_server()
    assert server.url  # so it has begun to load
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) in (0, -signal.SIGINT)
    assert "Traceback" not in server.log.read_text()


def test_a_second_ctrl_c_ends_the_server_at_once(start_server):
    server = start_server().wait_until_ready()
    worker = os.pidfd_open(server.worker_pid())
    url = f"{server.url}/v1/chat/completions"
    with server.stopped_worker(), httpx.stream("POST", url, json=STREAM, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: "Waiting for connections to close" in server.log.read_text())
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == -signal.SIGINT
    assert select.select([worker], [], [], 30)[0], "the worker outlived the front end"
    os.close(worker)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("command", [["plan"], ["bench", "counts"]], ids=" ".join)
def test_ctrl_c_ends_other_commands_without_a_traceback(command):
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_until_it_runs(process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in stderr


def _wait_until_it_runs(process):
    """Wait until Ctrl-C has its default effect, which is the first thing that the command does."""
    bit = 1 << (signal.SIGINT - 1)

    def has_a_handler():
        return bit & _signals(process, "SigCgt")

    wait_until(lambda: has_a_handler())  # Python's own
    wait_until(lambda: not has_a_handler())


def _signals(process, name):
    with open(f"/proc/{process.pid}/status") as status:
        return int(dict(line.split(":\t", 1) for line in status)[name], 16)
