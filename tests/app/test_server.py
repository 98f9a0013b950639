import asyncio
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, model_validator

from app.dialects.incoming import incoming
from app.errors import GenerationFailed, NotReady, TooManyRequests, error_body
from app.middleware import RequestIds, UnexpectedErrors
from app.settings import Settings
from app.threads import Threads


async def test_an_unexpected_error_is_a_500_in_the_envelope_with_a_request_id():
    app = FastAPI()
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(RequestIds)

    @app.get("/fault")
    async def fault():
        raise ZeroDivisionError

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://easel"
    ) as client:
        response = await client.get("/fault")
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/v1/chat/completions", ["data: {", "", "data: [DONE]"]),
        ("/v1/messages", ["event: error", "data: {"]),
    ],
)
async def test_an_unexpected_error_ends_a_stream_as_the_dialect_requires(path, last):
    app = FastAPI()
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(RequestIds)

    async def broken():
        yield "data: {}\n\n"
        raise ZeroDivisionError

    @app.get(path)
    async def fault():
        return StreamingResponse(broken(), media_type="text/event-stream")

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://easel"
    ) as client:
        first, empty, *lines = (await client.get(path)).text.rstrip("\n").split("\n")
    assert (first, empty) == ("data: {}", "")
    assert len(lines) == len(last)
    assert all(line.startswith(begun) for line, begun in zip(lines, last, strict=True))
    error = next(json.loads(line[6:]) for line in lines if line.startswith("data: {"))
    assert "log has its traceback" in error["error"]["message"]


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (NotReady("x"), "overloaded_error"),
        (TooManyRequests("x"), "rate_limit_error"),
        (GenerationFailed("x"), "api_error"),
    ],
)
def test_temporary_and_internal_errors_have_the_names_of_anthropic(error, name):
    expected = {"type": name, "message": "x"}
    assert error_body(error, "anthropic", "req-1") == {
        "type": "error",
        "error": expected,
        "request_id": "req-1",
    }


def test_a_failure_that_a_retry_would_repeat_says_so():
    failures = {"generation_failed": None, "out_of_memory": "false", "worker_died": "false"}
    for code, told in failures.items():
        assert GenerationFailed("x", code=code).headers.get("x-should-retry") == told


async def test_a_body_is_parsed_outside_of_the_event_loop():
    checked_in = []

    class Body(BaseModel):
        @model_validator(mode="after")
        def note(self):
            checked_in.append(threading.get_ident())
            return self

    threads = Threads()
    services = SimpleNamespace(settings=Settings(), threads=threads)
    messages = iter([{"type": "http.request", "body": b"{}"}])

    async def receive():
        return next(messages, None) or await asyncio.Event().wait()

    app = SimpleNamespace(state=SimpleNamespace(services=services))
    async with incoming(Request({"type": "http", "app": app}, receive), Body) as arriving:
        assert isinstance(arriving.body, Body)
    threads.close()
    assert checked_in
    assert threading.get_ident() not in checked_in


def test_the_front_end_never_imports_torch():
    code = (
        "import sys\n"
        "import app.serve\n"
        "from app.server import create_app\n"
        "from app.settings import Settings\n"
        "create_app(Settings())\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
