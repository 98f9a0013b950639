"""The FastAPI application: its routes, middleware and errors, and its worker's start and end."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from app.constraint.enforced import Constraints
from app.dialects.anthropic import route as messages
from app.dialects.chat import control
from app.dialects.chat import route as chat
from app.dialects.completions import route as completions
from app.dialects.decisions import route as decisions
from app.dialects.responses import kept as kept_responses
from app.dialects.responses import route as responses
from app.dialects.responses.store import ResponseStores
from app.dialects.systemone import route as systemone
from app.engine_client.worker import WorkerCannotStartError, WorkerClient
from app.errors import ApiError, MethodNotAllowed, NotFound, short
from app.metrics import Metrics
from app.middleware import (
    OWN_HEADERS,
    Envelopes,
    HttpOnly,
    IgnoredFields,
    RequestIds,
    RequestMetrics,
    RequestTarget,
    UnexpectedErrors,
    error_response,
)
from app.openapi import document
from app.origins import AllowedHosts, AllowedOrigins, allowed_hosts
from app.prompting.prompt import PromptBuilder
from app.request_body import RequestBody
from app.routes import about, health, models, tokens
from app.security import ApiKeys, api_keys, open_paths
from app.services import VERSION, Services
from app.settings import Settings, listed
from app.threads import Threads
from app.web_page import WebPage
from engine.messages import Loading, Ready
from engine.sizing.model_files import ModelFiles

# Modules with a router each.
ENDPOINTS = (
    chat,
    control,
    completions,
    responses,
    kept_responses,
    messages,
    decisions,
    systemone,
    models,
    tokens,
    health,
    about,
)

logger = logging.getLogger(__name__)

Announce = Callable[[AsyncIterator[Loading | Ready]], Awaitable[None]]


async def _announce_nothing(_states: AsyncIterator[Loading | Ready]) -> None:
    pass


def _end_server() -> None:
    """End the server in order. It then exits with code 1."""
    os.kill(os.getpid(), signal.SIGTERM)


def create_app(
    settings: Settings,
    announce: Announce = _announce_nothing,
    end: Callable[[], None] = _end_server,
) -> FastAPI:
    """Returns an app that starts its own worker and passes the worker's states to `announce`.

    If the worker can't start, `app.state.worker_error` says why, and `end` is called.

    Raises ModelFilesError, DimensionsError or TemplateUnreadableError if the model's files can't be
    used, and KeysUnreadableError if the API keys can't be read.
    """
    keys = api_keys(settings)
    hosts, sees = listed(settings.image_hosts), not settings.gguf  # a GGUF file has no vision
    # The worker and its successors read the files of the same commit as this process.
    commit = ModelFiles(settings.model_path, settings.revision).commit
    prompts = PromptBuilder(
        settings.model_path,
        hosts,
        sees=sees,
        template_file=settings.chat_template,
        revision=commit,
    )
    metrics = Metrics(settings.model_names[0])
    config = settings.engine_config()
    if commit:
        config = config.model_copy(update={"revision": commit})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        threads = Threads()
        constraints = Constraints(prompts.vocabulary, prompts.vocab_size, threads.prompts.run)
        worker = WorkerClient(
            config,
            metrics,
            max_queue=settings.max_queue,
            silence_s=settings.worker_silence_s,
            key_priorities=keys.values(),
            first_messages=constraints.first_messages,
        )
        app.state.services = Services(settings, metrics, worker, prompts, threads, constraints)
        app.state.responses = ResponseStores(settings.responses_kept, settings.responses_kept_bytes)
        app.state.worker_error = None
        announcing = asyncio.ensure_future(announce(worker.states()))
        running = asyncio.create_task(worker.run())
        running.add_done_callback(lambda task: _end_if_failed(app, task, end))
        try:
            yield
        finally:
            announcing.cancel()
            running.cancel()
            await asyncio.wait([running])
            threads.close()
            await constraints.close()

    app = FastAPI(
        title="Easel",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # `RequestTarget` takes the slashes away, so nothing is redirected
    )
    app.openapi = lambda: document(app)  # type: ignore[method-assign]  # as FastAPI documents it
    app.state.created = int(time.time())
    for module in ENDPOINTS:
        app.include_router(module.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_exception)
    # The middleware added last is the outermost, so every answer has a request id.
    app.add_middleware(IgnoredFields)
    app.add_middleware(RequestBody, most=settings.max_body_bytes)
    if keys:
        app.add_middleware(ApiKeys, keys=keys, open_paths=open_paths(settings))
    app.add_middleware(WebPage)
    app.add_middleware(AllowedOrigins, origins=listed(settings.cors_origins))
    app.add_middleware(AllowedHosts, hosts=allowed_hosts(settings))
    app.add_middleware(HttpOnly)
    app.add_middleware(UnexpectedErrors)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=listed(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,  # browsers ask before a public page may use this machine
            expose_headers=OWN_HEADERS,
        )
    app.add_middleware(Envelopes)
    app.add_middleware(RequestMetrics, metrics=metrics)
    app.add_middleware(RequestIds)
    app.add_middleware(RequestTarget)
    return app


def _end_if_failed(app: FastAPI, task: asyncio.Task[None], end: Callable[[], None]) -> None:
    """Call `end` if the worker can't start."""
    error = None if task.cancelled() else task.exception()
    if error is None:
        return
    app.state.worker_error = str(error)
    if not isinstance(error, WorkerCannotStartError):
        app.state.worker_error = f"{type(error).__name__}: {error}"
        logger.critical("unexpected error", exc_info=error)
    end()


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request, error)


async def _http_exception(request: Request, error: Exception) -> Response:
    """Returns an error that Starlette itself raised, in the envelope of the request's dialect.

    No endpoint has a method OPTIONS. It is answered here, like each method that a path lacks, with
    a list of those that it has.
    """
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = {"allow": ", ".join(_methods(request, error))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allowed)
        answer = error_response(
            request, MethodNotAllowed(f"{short(request.method)} is not allowed on {short(path)}.")
        )
        answer.headers.update(allowed)
        return answer
    if error.status_code == 404:
        return error_response(request, NotFound(f"The path {short(path)} does not exist."))
    return error_response(request, ApiError(str(error.detail)))


def _methods(request: Request, error: HTTPException) -> list[str]:
    """Returns all methods of the request's path. The error names those of one of its routes."""
    methods = {"OPTIONS", *(error.headers or {})["Allow"].split(", ")}
    for module in ENDPOINTS:
        for route in module.router.routes:
            assert isinstance(route, APIRoute)
            if route.matches(request.scope)[0] is not Match.NONE:
                methods |= route.methods or set()
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)
