"""The stage "server": `easel serve` with the demo model and with a model of the released width."""

import gc
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from bench.gpu.checkpoint import write_checkpoint
from bench.gpu.device import DEVICE, TINY, empty_cache
from bench.gpu.results import SERVER_FILE, guarded, out_folder, work_folder, write_row
from bench.gpu.small_model import QUESTIONS

_STAGE = "server"
_ADDRESS = re.compile(r"listening on (http://\S+?);")
_START_S, _STOP_S = 70, 40
_TOGETHER = 10  # answers
_LOADS = ("quantised while loading", "quantised, from the cache")[: 1 if TINY else 2]
_TOKENS = 40 if TINY else 400  # of an answer
_METRICS, _LOG_CHARACTERS = 12, 20_000
_LAYERS = 2 if TINY else 4
_SETTINGS = {
    "EASEL_MAX_CONTEXT": "512" if TINY else "8192",
    "EASEL_MAX_ACTIVE": "3",
    "EASEL_QUANTIZE_EXPERTS": "int4",
    "EASEL_QUANTIZE_LINEARS": "int8",
}


def check_server() -> None:
    """Stream answers of both models. The second one is loaded twice, once from the cache."""
    guarded(_STAGE, "demo model", lambda: _check("demo model", "demo", QUESTIONS, {}))
    folder = work_folder() / "checkpoint"

    def write() -> bool:
        started = time.perf_counter()
        write_checkpoint(folder, _LAYERS)
        write_row(
            _STAGE,
            case=f"checkpoint of {_LAYERS} layers written",
            s=round(time.perf_counter() - started, 1),
            gb=sum(file.stat().st_size for file in folder.iterdir()) / 1e9,
        )
        return True

    if guarded(_STAGE, "checkpoint", write):
        gc.collect()
        empty_cache()
        prompts = ["Hello", "Tell me more", "And then"]
        for case in _LOADS:
            guarded(_STAGE, case, partial(_check, case, str(folder), prompts, _SETTINGS))


def _check(case: str, model: str, prompts: list[str], settings: dict[str, str]) -> None:
    """Stream answers to these prompts, one by one, then as many together as a busy server has."""
    log = work_folder() / "server.log"
    try:
        started = time.perf_counter()
        with _server(log, EASEL_MODEL=model, **settings) as process:
            with httpx.Client(base_url=_ready_url(process, log), timeout=60) as client:
                ready_s = time.perf_counter() - started
                _stream(client, prompts[0])  # warms up
                alone = [_stream(client, prompt) for prompt in prompts]
                started = time.perf_counter()
                with ThreadPoolExecutor(_TOGETHER) as threads:
                    several = itertools.islice(itertools.cycle(prompts), _TOGETHER)
                    together = list(threads.map(partial(_stream, client), several))
                together_s = time.perf_counter() - started
                truncated = _stream(client, prompts[0], top_p=0.95)
                metrics = client.get("/metrics").text
            write_row(
                _STAGE,
                case=case,
                ready_s=round(ready_s, 2),
                first_block_s=_median(alone, "first_block_s"),
                tokens_s=sum(each["tokens"] for each in alone) / sum(each["s"] for each in alone),
                together=_TOGETHER,
                together_first_block_s=_median(together, "first_block_s"),
                together_tokens_s=sum(each["tokens"] for each in together) / together_s,
                same_together=[
                    each["text"] == alone[i % len(alone)]["text"] for i, each in enumerate(together)
                ],
                top_p_s=truncated["s"],
                answers=alone,
                metrics=[
                    line
                    for line in metrics.splitlines()
                    if line.startswith("easel") and "bucket" not in line
                ][:_METRICS],
            )
            process.terminate()
            code = process.wait(_STOP_S)
            write_row(_STAGE, case=f"{case}: stopped", ok=code == 0, code=code)
    finally:
        with (out_folder() / SERVER_FILE).open("a") as file:
            file.write(f"\n==== {case}\n{log.read_text()[-_LOG_CHARACTERS:]}")


def _median(answers: list[dict[str, Any]], name: str) -> float | None:
    values = [each[name] for each in answers if each[name] is not None]
    return statistics.median(values) if values else None


@contextmanager
def _server(log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Yields the process of a server that listens on a free port. It has ended afterwards."""
    variables = {
        "EASEL_PORT": "0",
        "EASEL_DEVICE": DEVICE.type,
        "TRITON_INTERPRET": "0",
        "XDG_CACHE_HOME": str(work_folder() / "cache"),
        **settings,
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve"],
            env={**os.environ, **variables},
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _ready_url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Returns the server's address when it is ready.

    Raises RuntimeError with the end of its log if it ends or is not ready in time.
    """
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        address = _ADDRESS.search(log.read_text())
        if address and _is_ready(address[1]):
            return address[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server is not ready: {log.read_text()[-500:]}")


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def _stream(client: httpx.Client, prompt: str, **options: Any) -> dict[str, Any]:
    """Returns the text of a streamed answer, its times, tokens and diffusion figures.

    Raises httpx.HTTPStatusError if the server refuses the request.
    """
    started = time.perf_counter()
    first_s, text, tokens, diffusion = None, "", 0, None
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": _TOKENS,
        "seed": 1,
        **options,
    }
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk["choices"] and (content := chunk["choices"][0]["delta"].get("content")):
                first_s = first_s or round(time.perf_counter() - started, 3)
                text += content
            diffusion = chunk.get("diffusion") or diffusion
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    return {
        "text": text[:120],
        "tokens": tokens,
        "first_block_s": first_s,
        "s": round(time.perf_counter() - started, 3),
        "diffusion": diffusion,
    }
