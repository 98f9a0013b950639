"""The stage "server": `easel serve` with the demo model and with a model of the released width."""

import gc
import json
import os
import re
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

from bench.gpu_check.checkpoint import write_checkpoint
from bench.gpu_check.device import DEVICE, TINY, empty_cache
from bench.gpu_check.results import guarded, out_folder, work_folder, write_row
from bench.gpu_check.small_model import QUESTIONS

_STAGE = "server"
_ADDRESS = re.compile(r"listening on (http://\S+?);")
_START_S, _STOP_S = 70, 40
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
        for case in ("quantised while loading", "quantised, from the cache"):
            guarded(_STAGE, case, partial(_check, case, str(folder), prompts, _SETTINGS))


def _check(case: str, model: str, prompts: list[str], settings: dict[str, str]) -> None:
    """Stream answers to these prompts, one by one and then all together."""
    log = work_folder() / "server.log"
    try:
        started = time.perf_counter()
        with _server(log, EASEL_MODEL=model, **settings) as process:
            with httpx.Client(base_url=_ready_url(process, log), timeout=60) as client:
                ready_s = time.perf_counter() - started
                alone = [_stream(client, prompt) for prompt in prompts]
                with ThreadPoolExecutor(len(prompts)) as threads:
                    together = list(threads.map(partial(_stream, client), prompts))
                truncated = _stream(client, prompts[0], top_p=0.95)
                metrics = client.get("/metrics").text.splitlines()
            write_row(
                _STAGE,
                case=case,
                ready_s=round(ready_s, 2),
                alone=alone,
                together=together,
                top_p=truncated,
                same_together=[
                    a["text"] == b["text"] for a, b in zip(alone, together, strict=True)
                ],
                metrics=[
                    line for line in metrics if line.startswith("easel") and "bucket" not in line
                ][:12],
            )
            process.terminate()
            code = process.wait(_STOP_S)
            write_row(_STAGE, case=f"{case}: stopped", ok=code == 0, code=code)
    finally:
        with (out_folder() / "server.txt").open("a") as file:
            file.write(f"\n==== {case}\n{log.read_text()[-20000:]}")


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
    """Returns the text of a streamed answer, its times and its last chunk's diffusion figures.

    Raises httpx.HTTPStatusError if the server refuses the request.
    """
    started = time.perf_counter()
    first_s, text, chunks, last = None, "", 0, {}
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "max_tokens": 200,
        "seed": 1,
        **options,
    }
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            last = json.loads(line.removeprefix("data: "))
            content = last["choices"][0]["delta"].get("content") if last["choices"] else None
            if content:
                first_s = first_s or round(time.perf_counter() - started, 3)
                text += content
                chunks += 1
    return {
        "text": text[:120],
        "chunks": chunks,
        "first_s": first_s,
        "s": round(time.perf_counter() - started, 3),
        "diffusion": last.get("diffusion"),
    }
