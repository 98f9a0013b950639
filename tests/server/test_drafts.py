"""Drafts in streams of a real server."""

import json
import socket
from contextlib import closing

import pytest

from tests.counting import count
from tests.polling import wait_until

CHAT = "/v1/chat/completions"
COUNT = {
    "messages": [{"role": "user", "content": count(2)}],
    "seed": 1,
    "max_tokens": 80,
    # Blocks that take several steps, because nothing is ever certain enough.
    "max_denoising_steps": 4,
    "confidence_threshold": 0,
}
RAW = {**{k: v for k, v in COUNT.items() if k != "messages"}, "prompt": "one two three"}
CHATS = [(CHAT, COUNT), ("/v1/completions", RAW)]


def drafts(**options):
    return {"stream_options": {"include_drafts": True, **options}}


def stream(http, path, **body):
    with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        events = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def is_frame(chunk):
    return "block" in chunk.get("diffusion", {})


def frames(chunks):
    return [chunk["diffusion"] for chunk in chunks if is_frame(chunk)]


def without_names(chunks):
    return [{**chunk, "id": "", "created": 0, "diffusion": None} for chunk in chunks]


def text(chunks):
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(each.get("text") or each.get("delta", {}).get("content", "") for each in choices)


@pytest.mark.parametrize(("path", "body"), CHATS)
def test_a_stream_with_drafts_is_the_stream_without_them_and_frames_that_add_nothing(
    demo_server, path, body
):
    plain = stream(demo_server.http, path, **body)
    watched = stream(demo_server.http, path, **body, **drafts())
    assert not frames(plain)
    others = [chunk for chunk in watched if not is_frame(chunk)]
    assert without_names(others) == without_names(plain)
    for chunk in watched:
        if is_frame(chunk):
            (choice,) = chunk["choices"]
            assert choice["finish_reason"] is choice["logprobs"] is None
            assert choice.get("delta", {}) == {}
            assert choice.get("text", "") == ""


def test_the_finished_blocks_make_up_the_answer_and_say_how_they_settled(demo_server):
    chunks = stream(demo_server.http, CHAT, **COUNT, **drafts())
    finished = [frame for frame in frames(chunks) if "settled" in frame]
    assert len(finished) == chunks[-1]["diffusion"]["blocks"] > 1
    assert "".join(frame["text"] for frame in finished) == text(chunks)
    for frame in frames(chunks):
        assert len(frame["tokens"]) == len(frame["accepted"])
        assert "".join(frame["tokens"]) == frame["text"]
        assert frame["entropy"] >= 0
    for frame in finished:
        assert len(frame["settled"]) == frame["step"]
        assert frame["settled"] == sorted(frame["settled"])
        assert frame["settled"][-1] == len(frame["tokens"])
    steps = sum(frame["step"] for frame in finished)
    assert steps == chunks[-1]["diffusion"]["denoising_steps"]


def test_a_frame_of_a_finished_block_comes_behind_its_content(demo_server):
    chunks = stream(demo_server.http, CHAT, **COUNT, **drafts(drafts_every=1024))
    kinds = [
        "frame" if is_frame(c) else "content"
        for c in chunks
        if c["choices"][0]["delta"] or is_frame(c)
    ]
    assert kinds[1:] == ["content", "frame"] * (len(kinds) // 2)


@pytest.mark.parametrize("options", [{"drafts_every": 1024}, {"drafts_interval": 60_000}])
def test_drafts_can_be_thinned_but_finished_blocks_cannot(demo_server, options):
    shown = frames(stream(demo_server.http, CHAT, **COUNT, **drafts(**options)))
    finished = [frame for frame in shown if "settled" in frame]
    assert len(shown) - len(finished) <= 1
    assert len(finished) > 1


def test_each_choice_has_its_own_frames(demo_server):
    chunks = stream(demo_server.http, CHAT, **COUNT, n=2, **drafts(drafts_every=1024))
    for index in range(2):
        own = [c for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(frame["text"] for frame in frames(own)) == text(own)


def test_frames_have_the_usage_so_far_if_each_chunk_has_it(demo_server):
    usage = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = stream(demo_server.http, CHAT, **COUNT, **drafts(**usage))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0] == 0


def test_drafts_of_an_answer_that_is_not_streamed_are_not_made(demo_server):
    plain = demo_server.http.post(CHAT, json=COUNT).json()
    watched = demo_server.http.post(CHAT, json={**COUNT, **drafts()}).json()
    assert watched["choices"] == plain["choices"]
    assert "blocks" in watched["diffusion"]


@pytest.mark.parametrize(
    "options", [{"drafts_every": 0}, {"drafts_every": 1025}, {"drafts_interval": -1}]
)
def test_an_option_out_of_its_range_is_refused_by_name(demo_server, options):
    body = {**COUNT, "stream": True, **drafts(**options)}
    answer = demo_server.http.post(CHAT, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == f"stream_options.{next(iter(options))}"


LONG = {**COUNT, "max_tokens": 320, "max_denoising_steps": 16, "ignore_eos": True}


def test_a_client_that_does_not_read_misses_drafts_but_no_content(demo_server):
    """It reads when the whole answer is made, and finds few drafts in front of the content."""
    http = demo_server.http
    whole = http.post(CHAT, json=LONG).json()
    dropped = demo_server.metrics()[("easel_drafts_dropped_total",)]
    body = json.dumps({**LONG, "stream": True, **drafts()}).encode()
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(demo_server.port)))
        head = f"POST {CHAT} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        ended = sum(demo_server.ended().values())
        connection.sendall(head.encode() + body)
        wait_until(lambda: sum(demo_server.ended().values()) > ended, 60)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    events = [line for line in received.decode().split("\n") if line.startswith("data: {")]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert text(chunks) == whole["choices"][0]["message"]["content"]
    blocks, steps = (whole["diffusion"][name] for name in ("blocks", "denoising_steps"))
    finished = [frame for frame in frames(chunks) if "settled" in frame]
    assert len(finished) == blocks
    shown = len(frames(chunks)) - blocks
    assert (
        demo_server.metrics()[("easel_drafts_dropped_total",)] - dropped == steps - blocks - shown
    )
    sizes = [len(event) for event in events if is_frame(json.loads(event.removeprefix("data: ")))]
    assert (steps - blocks) * min(sizes) > 2**16
    assert shown * max(sizes) < 2**15
