"""What `easel serve` prints and listens on, without a worker."""

import asyncio
import socket
from io import StringIO

import pytest
from fastapi import FastAPI
from rich.console import Console
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.serve import LoadedSoFar, announcer, banner, listen, server_config
from app.settings import Settings
from app.terminal import ProgressLine
from engine.messages import Loading, Ready


def test_the_banner_shows_the_profile_and_where_the_page_is():
    ready = Ready("cpu", "float32", 2048, 32, 1280, profile="demo: max_active 4")
    shown = banner(Settings(), "http://127.0.0.1:8000", ready)
    assert "  profile  demo: max_active 4\n  page     http://127.0.0.1:8000/\n" in shown


async def test_the_start_shows_what_is_loaded_and_then_the_address():
    console, settings = Console(file=StringIO(), soft_wrap=True), Settings()

    async def states():
        yield Loading(2 * 10**9, 5 * 10**9)
        memory = {"used_bytes": 4 * 10**8, "free_bytes": 3 * 10**9}
        yield Ready("cpu", "float32", 2048, 32, 1280, profile="none", **memory)

    with ProgressLine(console, animated=True) as progress:
        await announcer(settings, "http://127.0.0.1:8000", console, progress)(states())
    first, _, second, *_ = console.file.getvalue().splitlines()
    assert first == "easel: loading the model demo: 2.0 GB of 5.0 GB, 40 %"
    assert second == (
        "Easel listens on http://127.0.0.1:8000/v1: demo on cpu, 0.4 GB of memory used, 3.0 GB free"
    )


@pytest.mark.parametrize(
    ("seconds", "loaded", "text"),
    [
        (0, 10, "1.0 GB of 5.0 GB, 20 %"),
        (2, 10, "1.0 GB of 5.0 GB, 20 %"),
        (2, 20, "2.0 GB of 5.0 GB, 40 %, 0.5 GB/s, 6 s left"),
        (4, 50, "5.0 GB of 5.0 GB, 100 %, 1.0 GB/s, 0 s left"),
    ],
)
def test_the_rate_and_the_time_left_are_those_since_the_first_figure(seconds, loaded, text):
    first = LoadedSoFar(10**9, 5 * 10**9, 100.0)
    now = LoadedSoFar(loaded * 10**8, 5 * 10**9, 100.0 + seconds)
    assert now.since(first) == text


async def test_responses_do_not_wait_until_earlier_ones_are_acknowledged():
    accepted = asyncio.get_running_loop().create_future()
    listening = listen(Settings(port=0))
    port = listening.getsockname()[1]

    def on_connection(_reader, writer):
        accepted.set_result(writer)

    async with await asyncio.start_server(on_connection, sock=listening):
        _, client = await asyncio.open_connection("127.0.0.1", port)
        connection = (await accepted).get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for each in (client, await accepted):
            each.close()


def test_requests_are_read_by_h11_and_never_by_a_websocket_library():
    config = server_config(FastAPI(), Settings())
    config.load()
    assert issubclass(config.http_protocol_class, H11Protocol)
    assert config.ws_protocol_class is None
