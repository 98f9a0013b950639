"""Fixtures that run real servers with real workers.

`server` has random weights in the demo model's shape, `demo_server` has the trained demo model.
`shared_server` and `start_server` start servers with other settings.
"""

import os

import torch

# The tests of the kernels run on the GPU if there is one, and otherwise on Triton's interpreter.
# Triton reads this variable when it is first imported, which the imports below do, but not torch.
# The servers that the tests start do not inherit it.
os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch

from demo.network import new_config, new_model
from demo.tokenizer import END_OF_CALL, END_OF_TURN, SPECIAL_TOKENS, build_tokenizer
from demo.train import save
from tests.running_server import Server

# A shell's background jobs ignore SIGINT, and so would the processes that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

CANVAS = 32
STEPS = 3  # denoising steps a block, because random weights never converge

StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights behind the demo model's real tokenizer and chat template.

    Their logits of tokens that end an answer are zero, so an answer never ends by chance.
    """
    folder = tmp_path_factory.mktemp("random-weights", numbered=False)  # also the model's name
    model = new_model(0, new_config(canvas=CANVAS))
    ends = [SPECIAL_TOKENS["<eos>"], END_OF_TURN, END_OF_CALL, SPECIAL_TOKENS["<pad>"]]
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[ends] = 0.0
    save(model, build_tokenizer(0, examples=4000), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_denoising_steps": STEPS}))
    return folder


@pytest.fixture(scope="session")
def shared_server(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartServer]:
    """Returns a function that returns a ready server with the given settings.

    Each distinct combination of settings has one server, which all tests of the process share. A
    test must not end it or its worker, but may stop the worker inside `Server.stopped_worker`.
    """
    servers: dict[frozenset[tuple[str, str]], Server] = {}

    def get(**settings: str) -> Server:
        key = frozenset(settings.items())
        if key not in servers:
            log = tmp_path_factory.mktemp("server") / "log"
            servers[key] = Server(log, **{"EASEL_MODEL": str(model_folder), **settings})
        return servers[key].wait_until_ready()

    yield get
    try:
        failed = [server.log.read_text() for server in servers.values() if server.stop() != 0]
    finally:
        for server in servers.values():
            server.kill()
    assert not failed, "\n\n".join(failed)


@pytest.fixture
def start_server(model_folder: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Returns a function that starts a server with the given settings for one test.

    The test may end the server and its worker in any way. The server is not ready yet.
    """
    started: list[Server] = []

    def start(**settings: str) -> Server:
        log = tmp_path / f"server-{len(started)}.log"
        started.append(Server(log, **{"EASEL_MODEL": str(model_folder), **settings}))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def server(shared_server: StartServer) -> Server:
    """The server with the default settings and random weights."""
    return shared_server()


@pytest.fixture(scope="session")
def limited_server(shared_server: StartServer) -> Server:
    """A server with low limits: 3 open answers, bodies of 2,000 bytes and 1 kept response."""
    return shared_server(EASEL_MAX_QUEUE="3", EASEL_MAX_BODY_BYTES="2000", EASEL_RESPONSES_KEPT="1")


@pytest.fixture(scope="session")
def http(server: Server) -> httpx.Client:
    return server.http


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def demo_server(shared_server: StartServer) -> Server:
    """The server that a newcomer starts: the trained demo model with the default settings."""
    return shared_server(EASEL_MODEL="demo")


@pytest.fixture(scope="session")
def demo_client(demo_server: Server) -> Iterator[openai.OpenAI]:
    url = f"{demo_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client
