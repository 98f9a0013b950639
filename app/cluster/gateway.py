"""The one address in front of all replicas: it finds each request's replica and relays the answer.

It is an ASGI application that Ray Serve runs. It knows nothing of models, keys or limits: whatever
a request is refused for, a replica refuses it.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from app.cluster.call import Call, Whole
from app.cluster.destination import Destination, destination
from app.cluster.metrics import with_replicas
from app.errors import (
    ApiError,
    GenerationFailed,
    NotReady,
    TooManyRequests,
    dialect,
    error_body,
    stream_end,
)
from app.middleware import meant_path
from app.request_body import decoded

_TRIES = 3  # replicas that a request is sent to, if each of them dies before it answers
_SEARCH_S = 5.0  # in which replicas say whether they hold what a request refers to
_FULL = "Every replica has as many open requests as it accepts."
_LOST = "The replica that made this answer is gone."
_REQUEST_ID = b"x-request-id"  # Ray Serve's proxy adds this header, with the same value

logger = logging.getLogger(__name__)


class Gateway:
    """The ASGI application. `most_bytes` and `most_text_bytes` are the bounds of replicas' bodies.

    Unless `affinity`, requests go to any replica, except those that refer to something.
    """

    def __init__(
        self, easel: DeploymentHandle, *, most_bytes: int, most_text_bytes: int, affinity: bool
    ) -> None:
        self._easel = easel
        self._most_bytes = most_bytes
        self._most_text_bytes = most_text_bytes
        self._affinity = affinity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, send)
            case "lifespan":
                await _live(receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1003})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = meant_path(scope["path"]), Headers(scope=scope)
        body = await self._body(receive)
        if body is None:
            return  # the client has left
        call = Call.of(scope, body)
        try:
            if path == "/metrics":
                await self._metrics(call, send)
                return
            goal = await asyncio.to_thread(self._destination, path, headers, body)
            if goal.held:
                call = replace(call, replica=await self._holder(goal.held))
            await self._relay(call, goal.session, path, headers, send)
        except ApiError as error:
            await _refuse(error, path, headers, send)

    async def _relay(
        self, call: Call, session: str, path: str, headers: Headers, send: Send
    ) -> None:
        """Send a call to a replica, and its answer to the client.

        If the replica dies before its answer begins, another one gets the call. A stream that has
        begun ends with an error event. Raises GenerationFailed or TooManyRequests if no answer has
        begun, and Ray's own error if a whole answer has.
        """
        started = streaming = False
        for attempt in range(1, _TRIES + 1):
            messages = self._sent(call, session)
            try:
                async for several in messages:
                    for message in several:
                        if message["type"] == "http.response.start":
                            message, streaming = _relayed(message), _is_stream(message)
                        started = True
                        await send(message)
                return
            except asyncio.CancelledError:  # the client has left
                messages.cancel()
                raise
            except BackPressureError as error:
                raise TooManyRequests(_FULL) from error
            except (RayError, RayServeException) as error:
                died = isinstance(error, RayActorError | ReplicaUnavailableError)
                if died and not started and attempt < _TRIES:
                    logger.warning("a replica died; its request is sent to another one")
                    call = replace(call, replica=None)
                    continue
                logger.error("a replica did not finish its answer: %s", error)
                lost = GenerationFailed(_LOST)
                if not started:
                    raise lost from error
                if not streaming:
                    raise
                end = stream_end(lost, dialect(path, headers), headers.get("x-request-id"))
                await send({"type": "http.response.body", "body": end.encode()})
                return

    async def _body(self, receive: Receive) -> bytes | None:
        """Returns a request's body, or None if the client leaves.

        Reading ends when the body is larger than replicas accept, so that one of them refuses it.
        """
        body, more = bytearray(), True
        while more and len(body) <= self._most_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return bytes(body)

    def _destination(self, path: str, headers: Headers, body: bytes) -> Destination:
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            try:
                body = decoded(body, encoding, self._most_bytes)
            except (ApiError, KeyError):
                return Destination()  # a replica refuses it
        goal = destination(path, body, self._most_text_bytes)
        return goal if self._affinity else replace(goal, session="")

    async def _holder(self, ids: tuple[str, ...]) -> str | None:
        """Returns the replica that has what a request refers to, or None if no replica has it."""
        holders = await self._all("holds", ids)
        return next((each for each in holders if isinstance(each, str)), None)

    async def _all(self, method: str, argument: Any) -> Sequence[Any]:
        """Returns what a method returns on each replica, or the exception that it raises there.

        Raises NotReady if a replica does not respond.
        """
        answers = self._easel.broadcast(method, argument)
        try:
            results: Sequence[Any] = await answers.results_async(
                timeout_s=_SEARCH_S, return_exceptions=True
            )
        except TimeoutError as error:
            raise NotReady("A replica does not respond; try again soon.") from error
        return results

    def _sent(self, call: Call, session: str) -> Any:
        """Send the call to a replica. Returns its messages, an asynchronous iterator of lists."""
        return self._easel.options(method_name="answer", stream=True, session_id=session).remote(
            call
        )

    async def _metrics(self, call: Call, send: Send) -> None:
        """Send the metrics of all replicas, each series with its replica's id as a label."""
        answers = [each for each in await self._all("whole", call) if isinstance(each, Whole)]
        refused = next((each for each in answers if each.status != 200), None)
        if refused is not None:
            for message in refused.messages:
                await send(_relayed(message))
            return
        text = await asyncio.to_thread(
            with_replicas, {each.replica: each.body.decode() for each in answers}
        )
        headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


async def _live(receive: Receive, send: Send) -> None:
    """Answer ASGI's messages of start and end, for which nothing is to do."""
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def _relayed(message: Message) -> Message:
    """Returns a replica's message without the request id, which Ray Serve's proxy adds."""
    if message["type"] != "http.response.start":
        return message
    return {**message, "headers": [each for each in message["headers"] if each[0] != _REQUEST_ID]}


def _is_stream(start: Message) -> bool:
    kind: bytes = dict(start["headers"]).get(b"content-type", b"")
    return kind.startswith(b"text/event-stream")


async def _refuse(error: ApiError, path: str, headers: Headers, send: Send) -> None:
    """Send an error status in the envelope of the dialect that the request speaks."""
    body = error_body(error, dialect(path, headers), headers.get("x-request-id"))
    response = JSONResponse(body, status_code=error.status, headers=error.headers)
    await response({"type": "http"}, _nothing, send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
