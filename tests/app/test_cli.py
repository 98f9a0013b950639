"""The help and the output of the command line."""

import asyncio
import socket

from fastapi import FastAPI
from typer.testing import CliRunner
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.cli import _banner, _listen, _server_config, main
from app.settings import Settings
from engine.config import profile_names
from engine.messages import Ready


def test_the_help_of_serve_names_every_profile_and_every_setting():
    text = CliRunner(env={"COLUMNS": "400"}).invoke(main, ["serve", "--help"]).output
    assert all(name in text for name in profile_names())
    assert all(f"--{name.replace('_', '-')}" in text for name in Settings.model_fields)


def test_the_banner_shows_the_profile():
    ready = Ready("cpu", "float32", 2048, 32, 1280, profile="demo: max_active 4")
    assert "  profile  demo: max_active 4\n" in _banner(Settings(), "http://127.0.0.1:8000", ready)


async def test_responses_do_not_wait_until_earlier_ones_are_acknowledged():
    accepted = asyncio.get_running_loop().create_future()
    listening = _listen(Settings(port=0))
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
    config = _server_config(FastAPI(), Settings())
    config.load()
    assert (config.http_protocol_class, config.ws_protocol_class) == (H11Protocol, None)
