"""One Easel of a cluster: the front end with its own worker process, as a Ray Serve replica.

It listens on no port. The gateway calls it with requests, and it returns ASGI messages.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from ray import serve
from starlette.types import Message

from app.cluster.call import Call, Whole
from app.dialects.responses.store import ResponseStores
from app.logs import configure_logs
from app.server import create_app
from app.services import Services
from app.settings import Settings
from engine.messages import Loading, Ready


class Replica:
    """A deployment's class. Ray Serve calls its public methods."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, options: dict[str, Any]
    ) -> None:
        """Start the front end with these settings, and return when the model is loaded.

        Each machine's environment may set further ones. Raises RuntimeError if the worker can't
        start. Ray Serve then tries it again, a few times.
        """
        settings = Settings(**options)
        configure_logs(settings.log_level, settings.log_format)
        started = asyncio.Event()

        async def announce(states: AsyncIterator[Loading | Ready]) -> None:
            async for state in states:
                if isinstance(state, Ready):
                    started.set()

        self._app = create_app(settings, announce, end=started.set)
        self._answering: set[asyncio.Task[None]] = set()
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        await started.wait()
        self.check_health()

    async def __del__(self) -> None:
        """End the worker. Ray Serve calls this when the last answer has ended."""
        await self._lifespan.__aexit__(None, None, None)

    def check_health(self) -> None:
        """Raises RuntimeError if no worker can run any more.

        A worker that is started again is no reason to replace this replica, because its open
        answers go on when the new one is ready.
        """
        error = self._app.state.worker_error
        if error is not None:
            raise RuntimeError(error)

    async def answer(self, call: Call) -> AsyncGenerator[list[Message], None]:
        """Yields the ASGI messages of the response, those together that are there together.

        Leaving early means that the client has disconnected.
        """
        coming: asyncio.Queue[Message | None] = asyncio.Queue()
        left = asyncio.Event()
        body: list[Message] = [{"type": "http.request", "body": call.body, "more_body": False}]

        async def receive() -> Message:
            if body:
                return body.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        task = asyncio.create_task(self._app(call.scope(), receive, coming.put))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        task.add_done_callback(lambda _: coming.put_nowait(None))
        try:
            while (message := await coming.get()) is not None:
                messages = [message]
                while not coming.empty() and (after := coming.get_nowait()) is not None:
                    messages.append(after)
                yield messages
                if task.done() and coming.empty():
                    break
            await task
        finally:
            left.set()

    async def whole(self, call: Call) -> Whole:
        """Returns the whole response at once, for requests that all replicas answer."""
        messages = [message async for some in self.answer(call) for message in some]
        return Whole(replica_id(), messages)

    def holds(self, ids: tuple[str, ...]) -> str | None:
        """Returns this replica's id if it has a response, an item or a running answer, else None.

        `ids` are those that a request refers to. It does not matter here whose they are: the
        endpoint that answers the request checks that.
        """
        stores: ResponseStores = self._app.state.responses
        services: Services = self._app.state.services
        held = any(stores.holds(id) or services.worker.answers(_answer_id(id)) for id in ids)
        return replica_id() if held else None


def replica_id() -> str:
    """Returns the id of the replica that runs this code, as the router knows it."""
    id: str = serve.get_replica_context().replica_id.unique_id
    return id


def _answer_id(id: str) -> str:
    """Returns an answer's own id, given the one that its dialect shows."""
    return id.rpartition("-")[2].rpartition("_")[2]
