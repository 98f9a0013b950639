"""From a request's body to the point where its answer begins, with bounds on time and memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from app.arrival import deadline
from app.dialects.body import checked_size, parse, remember_ignored
from app.dialects.sampling_fields import ScheduledFields
from app.dialects.waiting import disconnect
from app.errors import DeadlineExceeded
from app.prompting.conversation import Conversation
from app.prompting.images import Picture
from app.security import client_of
from app.services import Services, services_of
from app.threads import Run

T = TypeVar("T", bound=BaseModel)

_LARGE = 2**20  # bytes of text from which on bodies are read one at a time


@dataclass(frozen=True)
class Incoming(Generic[T]):
    """A request's body, and what runs further work for it in a thread."""

    body: T
    run: Run
    services: Services

    async def pictures(self, conversation: Conversation, param: str = "messages") -> list[Picture]:
        """Returns the pictures of a conversation's prompt. Raises BadRequest."""
        prompts = self.services.prompts
        images = await self.run(prompts.images, conversation, param)
        return await prompts.pictures(images, self.services.threads.pictures)


@asynccontextmanager
async def incoming(http: Request, schema: type[T]) -> AsyncIterator[Incoming[T]]:
    """Yields a request's body as an instance of `schema`. The prompt is made inside of the block.

    The block is left as soon as the client leaves (ClientDisconnect) or the time of the request is
    up, counted from its arrival (DeadlineExceeded). Bodies with much text pass through it one at a
    time. A request gets the priority of its API key, unless its own is worse. Raises BodyTooLarge,
    and BadRequest that names the wrong field.
    """
    body = await http.body()
    services = services_of(http)
    threads, settings = services.threads, services.settings
    ends = deadline(settings.request_timeout_s)
    async with _while_connected(http, ends) as timeout, AsyncExitStack() as held:
        run: Run = threads.prompts.run
        if len(body) > _LARGE:
            size = await run(checked_size, body, settings.max_text_bytes)
            if size > _LARGE:
                await held.enter_async_context(threads.large)
                run = threads.large_prompts.run
        value, ignored = await run(parse, body, schema)
        remember_ignored(http, ignored + _limit_priority(value, http))
        if isinstance(value, ScheduledFields) and value.timeout is not None:
            timeout.reschedule(deadline(value.timeout))
        yield Incoming(value, run, services)


def _limit_priority(value: BaseModel, http: Request) -> list[str]:
    """Set a priority that is not better than the API key's. Returns the name of an ignored one."""
    best = client_of(http).priority
    if not isinstance(value, ScheduledFields) or best is None:
        return []
    given = value.priority
    value.priority = best if given is None else max(best, given)
    return [] if given in (None, value.priority) else ["priority"]


@asynccontextmanager
async def _while_connected(http: Request, ends: float) -> AsyncIterator[asyncio.Timeout]:
    working = asyncio.current_task()
    assert working is not None, "an endpoint runs in a task"
    gone = False

    async def watch() -> None:
        nonlocal gone
        await disconnect(http)
        gone = True
        working.cancel()

    watching = asyncio.create_task(watch())
    timeout = asyncio.timeout_at(ends)
    try:
        async with timeout:
            yield timeout
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise DeadlineExceeded from error
    except asyncio.CancelledError as error:
        if gone and working.uncancel() == 0:
            raise ClientDisconnect from error
        raise
    finally:
        watching.cancel()
