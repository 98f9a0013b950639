"""Two replicas behind one address against one Easel: cached prompt tokens, and what the way costs.

Twenty conversations of six turns are held at the same time, a turn of each after the other. The
cached share is that of all prompt tokens. The overhead is measured with requests that are sent by
turns to the cluster and to an Easel without Ray on the same machine.
"""

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench.compare import Row, Show, silent

COLUMNS = [
    "cached_share",
    "of_one_easel",
    "replicas_used",
    "whole_ms",
    "first_block_ms",
    "health_ms",
    "whole_overhead_ms",
    "first_block_overhead_ms",
]
CONVERSATIONS, TURNS, WORDS = 20, 6, 25
_WORDS = ("red", "blue", "tree", "house", "river", "stone", "cloud", "bird", "light", "paper")
_START_S = 300
_LISTENS = "Easel listens on"


def rows(rounds: int, show: Show = silent) -> Iterator[Row]:
    """Yields a row for one Easel, then for two replicas with affinity and without it.

    `rounds` is the number of pairs of requests from which the overhead is measured.
    """
    with ExitStack() as running:
        show("starting an Easel")
        bare = running.enter_context(_started("serve"))
        one = _cached_share(bare, show)
        yield {"case": "one Easel", "cached_share": one, "of_one_easel": 1.0}
        for case, affinity in (("by conversation", "true"), ("any replica", "false")):
            show(f"starting two replicas, {case}")
            with _started("cluster", "--replicas", "2", "--affinity", affinity) as cluster:
                share = _cached_share(cluster, show)
                yield {
                    "case": f"two replicas, {case}",
                    "cached_share": share,
                    "of_one_easel": share / one,
                    "replicas_used": _replicas(cluster),
                    **_overhead(bare, cluster, rounds, show),
                }


@contextmanager
def _started(command: str, *options: str) -> Iterator[httpx.Client]:
    """Start `easel COMMAND` with the demo model. Yields a client of it when it is ready.

    Raises RuntimeError with its log if it ends before that.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", command, "--port", str(port), *options],
            env={**os.environ, "EASEL_DEVICE": "cpu", "EASEL_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            ends = time.monotonic() + _START_S
            while _LISTENS not in (text := Path(log.name).read_text()):
                if process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(f"easel {command} does not start:\n{text}")
                time.sleep(0.1)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                yield client
        finally:
            process.terminate()
            process.wait()


def _cached_share(client: httpx.Client, show: Show) -> float:
    """Returns which share of the prompt tokens of all conversations was in a kept prefix."""
    draw = random.Random(1)
    said: list[list[dict[str, str]]] = [[] for _ in range(CONVERSATIONS)]
    prompt = cached = 0
    for turn in range(TURNS):
        for number, messages in enumerate(said):
            show(f"turn {turn + 1} of {TURNS}, conversation {number + 1} of {CONVERSATIONS}")
            messages.append({"role": "user", "content": " ".join(draw.choices(_WORDS, k=WORDS))})
            answer = _ask(client, messages)
            messages.append({"role": "assistant", "content": answer["text"]})
            prompt += answer["usage"]["prompt_tokens"]
            cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached / prompt


def _ask(client: httpx.Client, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
    body = {"messages": messages, "seed": 1, "max_tokens": 32}
    response = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    return {"text": response["choices"][0]["message"]["content"], "usage": response["usage"]}


def _replicas(client: httpx.Client) -> int:
    """Returns how many replicas have answered something."""
    lines = client.get("/metrics").text.splitlines()
    ended = [line for line in lines if line.startswith("easel_completion_tokens_total{")]
    return sum(float(line.split()[-1]) > 0 for line in ended)


def _overhead(bare: httpx.Client, cluster: httpx.Client, rounds: int, show: Show) -> Row:
    """Returns the medians of the cluster's times, and what they are more than the bare Easel's."""
    measured: dict[tuple[str, bool], list[float]] = {}
    for number in range(rounds + 1):  # the first round warms up
        show(f"overhead: {f'round {number} of {rounds}' if number else 'warming up'}")
        for far, client in ((False, bare), (True, cluster)):
            for name, seconds in _times(client).items():
                if number:
                    measured.setdefault((name, far), []).append(1e3 * seconds)
    medians = {key: median(values) for key, values in measured.items()}
    return {
        "whole_ms": medians["whole", True],
        "first_block_ms": medians["first_block", True],
        "health_ms": medians["health", True],
        "whole_overhead_ms": medians["whole", True] - medians["whole", False],
        "first_block_overhead_ms": medians["first_block", True] - medians["first_block", False],
    }


def _times(client: httpx.Client) -> dict[str, float]:
    """Returns the seconds of a whole answer, of a stream's first block and of a health check."""
    messages = [{"role": "user", "content": "Count to 20"}]
    started = time.perf_counter()
    _ask(client, messages)
    whole = time.perf_counter() - started
    body = {"messages": messages, "seed": 1, "stream": True}
    started = time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        data = (line for line in stream.iter_lines() if '"content": "1' in line)
        next(data)
        first = time.perf_counter() - started
        for _ in data:
            pass
    started = time.perf_counter()
    client.get("/health/live")
    return {"whole": whole, "first_block": first, "health": time.perf_counter() - started}
