"""The FastAPI application: routes, errors, and the worker's life as its own."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    ApiError,
    BodyTooLarge,
    MethodNotAllowed,
    NotFound,
    NotReady,
    dialect,
    error_body,
    stream_end,
)
from app.logs import RequestIds, request_id
from app.metrics import Metrics
from app.openapi import document
from app.prompt import PromptBuilder
from app.response_store import ResponseStore
from app.routes import (
    about,
    anthropic,
    chat,
    completions,
    health,
    kept_responses,
    models,
    responses,
    tokens,
)
from app.routes.generation import Services
from app.security import ApiKeys, api_keys, open_paths
from app.settings import Settings, listed
from app.worker import WorkerCannotStartError, WorkerClient
from engine.messages import Loading, Ready

logger = logging.getLogger(__name__)

# Modules, each with a router.
ENDPOINTS = (
    chat,
    completions,
    responses,
    kept_responses,
    anthropic,
    models,
    tokens,
    health,
    about,
)

_SHUTTING_DOWN = NotReady("The server is shutting down.")
_UNEXPECTED = ApiError("An unexpected error happened; the server's log has it.")


def create_app(
    settings: Settings, on_progress: Callable[[Loading | Ready], None] = lambda _message: None
) -> FastAPI:
    """An app with a worker of its own.

    Raises OSError if the tokenizer's files are not there, KeysUnreadableError if its keys' are not.
    """
    keys = api_keys(settings)
    hosts, sees = listed(settings.image_hosts), not settings.gguf  # such a file has no vision
    prompts = PromptBuilder(settings.model_path, hosts, sees=sees)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        metrics = Metrics()
        worker = WorkerClient(
            settings.engine_config(),
            metrics,
            max_queue=settings.max_queue,
            on_progress=on_progress,
        )
        kept = ResponseStore(settings.responses_kept, settings.responses_kept_bytes)
        app.state.services = Services(settings, metrics, worker, prompts, kept)
        app.state.worker_error = None
        running = asyncio.create_task(worker.run())
        running.add_done_callback(lambda task: _end_if_failed(app, task))
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, WorkerCannotStartError):
                await running

    app = FastAPI(
        title="Easel",
        version=version("easel-server"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.openapi = lambda: document(app)  # type: ignore[method-assign]  # as FastAPI has it done
    app.state.created = int(time.time())
    for module in ENDPOINTS:
        app.include_router(module.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_exception)
    # The last one added is the outermost: every answer has a request id, this one's included.
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    if keys:
        app.add_middleware(ApiKeys, keys=keys, open_paths=open_paths(settings))
    app.add_middleware(UnexpectedErrors)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=listed(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "retry-after-ms"],
        )
    app.add_middleware(RequestIds)
    return app


def _end_if_failed(app: FastAPI, task: asyncio.Task[None]) -> None:
    """A worker that can't start ends the server, which then exits with an error."""
    if not task.cancelled() and task.exception() is not None:
        app.state.worker_error = task.exception()
        os.kill(os.getpid(), signal.SIGTERM)


class BodyLimit:
    """Middleware: a body over the limit is refused, by its announced length or as it comes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        received = int(announced) if announced.isdigit() else 0
        self._check(received)
        received = 0

        async def limited() -> dict[str, object]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            self._check(received)
            return dict(message)

        await self._app(scope, limited, send)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise BodyTooLarge(f"The body is larger than {self._most} bytes (max_body_bytes).")


class UnexpectedErrors:
    """Middleware: what no endpoint answers is answered here, in the envelope or the stream.

    A fault of ours is logged; a client that leaves while it sends its body is none. When the grace
    of a shutdown runs out, uvicorn cancels what still runs, which ends with an error of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = streaming = False

        async def watched(message: Message) -> None:
            nonlocal started, streaming
            started = True
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                streaming = kind.startswith(b"text/event-stream")
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            return
        except (Exception, asyncio.CancelledError) as error:
            if scope["type"] != "http":
                raise
            answered: ApiError
            match error:
                case ApiError():
                    answered = error
                case asyncio.CancelledError():
                    answered = _SHUTTING_DOWN
                case _:
                    logger.exception("unexpected error")
                    answered = _UNEXPECTED
            request = Request(scope)
            if not started:
                answer = await _api_error(request, answered)
                await answer(scope, receive, send)
            elif streaming:
                spoken = dialect(request.url.path, request.headers)
                last = stream_end(answered, spoken, request_id.get())
                await send({"type": "http.response.body", "body": last.encode()})
            elif answered is not _SHUTTING_DOWN:
                raise


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    body = error_body(error, dialect(request.url.path, request.headers), request_id.get())
    return JSONResponse(body, status_code=error.status, headers=error.headers)


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        answer = await _api_error(
            request, MethodNotAllowed(f"{request.method} is not allowed on {path}.")
        )
        answer.headers.update(error.headers or {})  # which methods are
        return answer
    if error.status_code == 404:
        return await _api_error(request, NotFound(f"There is nothing at {path}."))
    return await _api_error(request, ApiError(str(error.detail)))
