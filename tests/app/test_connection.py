"""The server's connections in this process, where their longest waits can be made short."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from uvicorn.server import ServerState

import app.connection
from app.serve import server_config
from app.settings import Settings

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@asynccontextmanager
async def connection(monkeypatch):
    """Yields a client's reader and writer of a connection that may be idle for 50 ms."""
    monkeypatch.setattr(app.connection, "KEEP_ALIVE_S", 0.05)
    config, state = server_config(FastAPI(), Settings()), ServerState()
    config.load()

    def protocol():
        return config.http_protocol_class(config=config, server_state=state, app_state={})

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()


@pytest.mark.parametrize("sent", [b"", GET, b"POST" + GET[3:-2] + b"Content-Length: 9\r\n\r\n"])
async def test_a_connection_that_is_idle_is_closed(monkeypatch, sent):
    async with connection(monkeypatch) as (reader, writer):
        writer.write(sent)
        if sent.startswith(b"POST"):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"123456789")  # the rest of a body that was not read
        answer = await reader.read()
    assert answer.count(b"HTTP/1.1") == (1 if sent.startswith(b"GET") else 0)
