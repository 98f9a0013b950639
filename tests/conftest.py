"""A real server on a real worker, with a checkpoint of the demo model's shape."""

import os

# Kernels are tested on Triton's interpreter, which it chooses when it is imported: by any of the
# imports below. The servers that tests start are not told.
os.environ["TRITON_INTERPRET"] = "1"

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import httpx
import openai
import pytest

from demo.network import new_model
from demo.tokenizer import build_tokenizer
from demo.train import save
from engine.config import DEMO_MODEL_PATH

START_S = 90
STEPS = 3  # denoising steps a block: random weights never converge


class Server:
    """`easel serve` as a process of its own, on a port that is free."""

    def __init__(self, model: Path, log: Path, **settings: str) -> None:
        self.log = log
        variables = {"EASEL_MODEL": str(model), "EASEL_PORT": "0", "EASEL_THREADS": "1"}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "serve"],
                env={**os.environ, "TRITON_INTERPRET": "0", **variables, **settings},
                stdout=output,
                stderr=output,
            )

    @cached_property
    def url(self) -> str:
        """The address, which the server says before it loads anything."""
        for _ in range(START_S * 100):
            found = re.search(r"listening on (http://\S+?);", self.log.read_text())
            if found:
                return found[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        raise AssertionError(f"it does not listen:\n{self.log.read_text()}")

    def wait_until_ready(self) -> "Server":
        with httpx.Client(base_url=self.url) as client:
            for _ in range(START_S * 10):
                assert self.process.poll() is None, self.log.read_text()
                try:
                    if client.get("/health/ready").status_code == 200:
                        return self
                except httpx.ConnectError:
                    pass
                try:
                    self.process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
        raise AssertionError(f"not ready in time:\n{self.log.read_text()}")

    def worker_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights behind the demo model's real tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("model")
    save(new_model(0), build_tokenizer(0, examples=4000), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_denoising_steps": STEPS}))
    return folder


@pytest.fixture
def start_server(model_folder: Path, tmp_path: Path) -> Iterator[object]:
    """Start a server of the test's own, with these settings in its environment."""
    started: list[Server] = []

    def start(**settings: str) -> Server:
        log = tmp_path / f"server-{len(started)}.log"
        started.append(Server(model_folder, log, **settings))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(model_folder, tmp_path_factory.mktemp("server") / "log").wait_until_ready()
    yield running
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What a newcomer gets: the trained demo model."""
    log = tmp_path_factory.mktemp("demo") / "log"
    running = Server(DEMO_MODEL_PATH, log, EASEL_MODEL="demo").wait_until_ready()
    yield running
    assert running.stop() == 0, log.read_text()


@pytest.fixture(scope="session")
def demo_client(demo_server: Server) -> Iterator[openai.OpenAI]:
    url = f"{demo_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
