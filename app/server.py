"""The FastAPI application: its routes, middleware and errors, and its worker's start and end."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from app.dialects.anthropic import route as messages
from app.dialects.chat import route as chat
from app.dialects.completions import route as completions
from app.dialects.responses import kept as kept_responses
from app.dialects.responses import route as responses
from app.dialects.responses.store import ResponseStore
from app.engine_client.worker import WorkerCannotStartError, WorkerClient
from app.errors import ApiError, MethodNotAllowed, NotFound
from app.metrics import Metrics
from app.middleware import BodyLimit, IgnoredFields, RequestIds, UnexpectedErrors, error_response
from app.openapi import document
from app.prompting.prompt import PromptBuilder
from app.routes import about, health, models, tokens
from app.security import ApiKeys, api_keys, open_paths
from app.services import Services
from app.settings import Settings, listed
from engine.messages import Loading, Ready

# Modules with a router each.
ENDPOINTS = (
    chat,
    completions,
    responses,
    kept_responses,
    messages,
    models,
    tokens,
    health,
    about,
)

Announce = Callable[[AsyncIterator[Loading | Ready]], Awaitable[None]]


async def _announce_nothing(_states: AsyncIterator[Loading | Ready]) -> None:
    pass


def create_app(settings: Settings, announce: Announce = _announce_nothing) -> FastAPI:
    """Returns an app that starts its own worker and passes the worker's states to `announce`.

    Raises OSError if the tokenizer's files are missing, KeysUnreadableError if the API keys can't
    be read, and TemplateUnreadableError if the chat template can't be used.
    """
    keys = api_keys(settings)
    hosts, sees = listed(settings.image_hosts), not settings.gguf  # a GGUF file has no vision
    prompts = PromptBuilder(
        settings.model_path, hosts, sees=sees, template_file=settings.chat_template
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        metrics = Metrics()
        worker = WorkerClient(
            settings.engine_config(),
            metrics,
            max_queue=settings.max_queue,
        )
        app.state.services = Services(settings, metrics, worker, prompts)
        app.state.responses = ResponseStore(settings.responses_kept, settings.responses_kept_bytes)
        app.state.worker_error = None
        announcing = asyncio.ensure_future(announce(worker.states()))
        running = asyncio.create_task(worker.run())
        running.add_done_callback(lambda task: _end_if_failed(app, task))
        try:
            yield
        finally:
            announcing.cancel()
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
    app.openapi = lambda: document(app)  # type: ignore[method-assign]  # as FastAPI documents it
    app.state.created = int(time.time())
    for module in ENDPOINTS:
        app.include_router(module.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_exception)
    # The middleware added last is the outermost, so every answer has a request id.
    app.add_middleware(IgnoredFields)
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
            expose_headers=["x-request-id", "x-easel-ignored", "retry-after", "retry-after-ms"],
        )
    app.add_middleware(RequestIds)
    return app


def _end_if_failed(app: FastAPI, task: asyncio.Task[None]) -> None:
    """End the server if its worker can't start. The server then exits with code 1."""
    if not task.cancelled() and task.exception() is not None:
        app.state.worker_error = task.exception()
        os.kill(os.getpid(), signal.SIGTERM)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(request, error)


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    """Returns an error that Starlette itself raised, in the envelope of the request's dialect."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        answer = error_response(
            request, MethodNotAllowed(f"{request.method} is not allowed on {path}.")
        )
        answer.headers.update(error.headers or {})  # `Allow` lists the methods that are allowed
        return answer
    if error.status_code == 404:
        return error_response(request, NotFound(f"The path {path} does not exist."))
    return error_response(request, ApiError(str(error.detail)))
