"""The server as a newcomer sees it: with its default settings and the trained demo model."""

import json
import os
import re
import shutil
import subprocess

import pytest

from demo.easy_tasks import GREETING
from tests.counting import count, counted


@pytest.fixture(scope="module")
def client(demo_client):
    return demo_client


def say(client, *turns, **options):
    """Ask for the next answer after `turns`, which alternate between the user and the model."""
    messages = [
        {"role": "assistant" if index % 2 else "user", "content": turn}
        for index, turn in enumerate(turns)
    ]
    return client.chat.completions.create(model="demo", messages=messages, seed=0, **options)


@pytest.mark.parametrize(
    ("turns", "answer"),
    [
        (["hello"], GREETING),
        (["What is the capital of France?"], "The capital of France is Paris."),
        (["Repeat 'sun' 4 times."], "sun sun sun sun"),
        (
            ["My name is Anna.", "Nice to meet you, Anna!", "What is my name?"],
            "Your name is Anna.",
        ),
    ],
)
def test_the_demo_model_answers(client, turns, answer):
    reply = say(client, *turns).choices[0]
    assert (reply.message.content, reply.finish_reason) == (answer, "stop")


def test_a_long_answer_is_streamed_in_one_chunk_per_block(client):
    chunks = list(say(client, count(3), stream=True))
    texts = [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content]
    assert "".join(texts) == counted(3)
    assert len(texts) == chunks[-1].diffusion["blocks"] == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_curl_line_that_the_server_prints_works(demo_server):
    command, _ = printed_commands(demo_server)
    seeded = command.replace('"stream": true', '"stream": true, "seed": 0')
    assert seeded != command
    *chunks, done = [
        line[6:] for line in output_of(seeded).splitlines() if line.startswith("data: ")
    ]
    text = "".join(json.loads(c)["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == ", ".join(map(str, range(1, 21)))
    assert done == "[DONE]"


def test_the_chat_line_that_the_server_prints_works_where_the_shell_finds_no_easel(demo_server):
    _, command = printed_commands(demo_server)
    assert output_of(command, "What is the capital of France?\n") == (
        "The capital of France is Paris.\n"
    )


def printed_commands(server):
    """Returns the commands that the server has printed to be pasted."""
    log = server.log.read_text()
    curl, chat = re.search(r"^  (curl .*\n    .*)\n  (.*)\n", log, re.MULTILINE).groups()
    return curl, chat


def output_of(command, stdin=""):
    """Returns what a shell prints that finds no `easel`."""
    done = subprocess.run(
        ["bash", "-c", command],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PATH": os.defpath},
    )
    return done.stdout
