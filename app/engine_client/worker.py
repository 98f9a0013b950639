"""Starts, watches and restarts the worker's process, and sends it requests.

There is one worker process at a time. Each process has its own socket in a private folder. Whatever
happens to the worker, every request gets its terminal message. If the worker dies, its requests
continue in the next one where they stopped.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

import zmq
import zmq.asyncio

from app.engine_client.open_requests import Answer, OpenRequests, is_last
from app.engine_client.places import Places
from app.engine_client.private_folder import PrivateFolder
from app.engine_client.service_rate import ServiceRate
from app.engine_client.together import together
from app.engine_client.watch import Watch
from app.engine_client.worker_log import relay
from app.engine_client.worker_process import Death, start_process
from app.errors import BadRequest, DeadlineExceeded, NotReady, TooManyRequests
from app.metrics import Metrics
from engine.config import EngineConfig
from engine.constraint.kept import Kept
from engine.messages import (
    Block,
    Cancel,
    Cancelled,
    Constraint,
    Draft,
    EndThought,
    Failed,
    GenerateRequest,
    Heartbeat,
    Loading,
    Ready,
    Stats,
    Texts,
    decode_from_worker,
    encode,
)

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 30.0
_STOP_S = 5.0
_TICK_S = 1.0  # between two looks at whether the worker hangs

# The places that the HTTP request at hand has reserved and not used yet, by priority. It is None if
# a program uses the worker without HTTP.
_reserved: ContextVar[Counter[int] | None] = ContextVar("reserved", default=None)


class WorkerCannotStartError(RuntimeError):
    """The worker ended before it was ready, or it could not be started. The text has the reason."""


class Admit(Protocol):
    """Admits a number of answers for a request, or raises. Returns the worker's limits."""

    def __call__(self, count: int = 1, *, priority: int = 0, param: str = "n") -> Ready: ...


class FirstMessages(Protocol):
    """Returns messages for a worker, whose checkpoint has these end tokens."""

    async def __call__(self, end_tokens: Sequence[int], /) -> Sequence[Texts]: ...


async def _none(_end_tokens: Sequence[int], /) -> Sequence[Texts]:
    return ()


class WorkerClient:
    """The worker, as the endpoints use it. `run` keeps it alive. `generate` sends it a request."""

    def __init__(
        self,
        config: EngineConfig,
        metrics: Metrics,
        *,
        max_queue: int,
        silence_s: float,
        key_priorities: Iterable[int] = (),
        first_messages: FirstMessages = _none,
    ) -> None:
        """`first_messages` returns what each worker gets before its first request."""
        self.ready: Ready | None = None  # the limits of the living worker
        self._state: Loading | Ready | None = None
        self._state_changed = asyncio.Event()
        self._config = config
        self._metrics = metrics
        self._silence_s = silence_s
        self._first_messages = first_messages
        self._places = Places(max_queue, key_priorities)
        self._open = OpenRequests()
        self._rate = ServiceRate()
        self._socket: zmq.asyncio.Socket | None = None
        self._kept: Kept[Constraint] = Kept()  # the constraints that the living worker has
        self._context = zmq.asyncio.Context()
        self._folder = PrivateFolder(Path(tempfile.gettempdir()))

    async def run(self) -> None:
        """Start the worker, and start it again whenever it dies, until cancelled.

        Raises WorkerCannotStartError if the first worker never gets ready. If a later one cannot be
        started, it is tried again.
        """
        ever_ready, backoff, life = False, _FIRST_BACKOFF_S, 0
        try:
            while True:
                try:
                    death = await self._live(life)
                    end, was_ready = str(death), death.was_ready
                except WorkerCannotStartError as error:
                    end, was_ready = str(error), False
                self.ready = None
                ever_ready = ever_ready or was_ready
                self._open.worker_died()
                self._count_open()
                self._metrics.set_worker_ended()
                if not ever_ready:
                    raise WorkerCannotStartError(end)
                backoff = _FIRST_BACKOFF_S if was_ready else min(2 * backoff, _LONGEST_BACKOFF_S)
                logger.error("%s; a new one starts in %.0f s", end, backoff)
                await asyncio.sleep(backoff)
                life += 1
        finally:
            self.ready = None
            self._open.fail_all("The server is shutting down.")
            self._count_open()
            self._context.destroy(linger=0)
            self._folder.remove()

    async def states(self) -> AsyncIterator[Loading | Ready]:
        """Yields the worker's state whenever it has changed. Only one reader is allowed.

        Nothing waits for the reader. A slow reader gets only the newest state.
        """
        while True:
            await self._state_changed.wait()
            self._state_changed.clear()
            assert self._state is not None
            yield self._state

    def _change_state(self, state: Loading | Ready) -> None:
        self._state = state
        self._state_changed.set()

    def limits(self) -> Ready:
        """Returns the limits of the living worker. Raises NotReady if no worker is ready."""
        if self.ready is None:
            raise NotReady("The model is not loaded; try again soon.")
        return self.ready

    @contextlib.contextmanager
    def admission(self) -> Iterator[Admit]:
        """Yields a function that admits the answers of an HTTP request to the queue.

        The request is admitted before its response begins, so that a refusal is a status. From then
        on no other request can take its places in the queue. It gives each place back when the
        worker has ended that answer, even if the client has not read it yet. Places without an
        answer are given back when the `with` block ends.

        The function raises NotReady if no worker is ready, TooManyRequests if the queue is full, or
        full for this priority, and BadRequest, which names `param`, if the queue could never hold
        so many answers.
        """
        reserved = Counter[int]()

        def admit(count: int = 1, *, priority: int = 0, param: str = "n") -> Ready:
            limit = self._places.limit(priority)
            if count > limit:
                raise BadRequest(
                    f"{param}: {count} answers are too many; at most {limit} of this priority may "
                    "be open at once (max_queue).",
                    param=param,
                )
            limits = self.limits()
            # A cancelled answer stays open until the worker has confirmed its end.
            shortage = self._places.reserve(count, priority, self._open.priorities)
            if shortage is not None:
                raise TooManyRequests(
                    f"{shortage.taken} answers are open and {count} more were requested; at most "
                    f"{shortage.limit} of this priority may be open at once (max_queue).",
                    retry_after_s=self._rate.wait_s(shortage.missing),
                )
            reserved[priority] += count
            return limits

        _reserved.set(reserved)  # for the tasks of this HTTP request
        try:
            yield admit
        finally:
            for priority, count in reserved.items():
                self._places.release(count, priority)
            reserved.clear()

    async def generate(
        self, request: GenerateRequest, deadline: float, constraint: Constraint | None = None
    ) -> AsyncGenerator[Answer, None]:
        """Yields the worker's messages about one request, the terminal one last.

        The request must have been admitted. `constraint` is the one that it names. If there is no
        worker, it waits for the next one. Leaving early cancels the request. Raises
        DeadlineExceeded at `deadline`, a time of the event loop's clock.
        """
        reserved, priority = _reserved.get(), request.sampling.priority
        if reserved is not None and reserved[priority] > 0:
            reserved[priority] -= 1
            self._places.release(1, priority)
        opened = self._open.add(request, constraint)
        self._count_open()
        # Later, when the tasks of all choices of a prompt have come here: they are sent together.
        asyncio.get_running_loop().call_soon(self._give_due)
        ended = False
        try:
            while not ended:
                async with asyncio.timeout_at(deadline):
                    answer = await opened.answers.get()
                ended = is_last(answer)
                yield answer
        except TimeoutError as error:
            raise DeadlineExceeded from error
        finally:
            # If the worker has the request, its terminal message comes later and removes it.
            if not ended and self._open.cancel(request.id) and self._socket is not None:
                self._socket.send(encode(Cancel(request.id)))
            self._count_open()

    def end_thoughts(self, answer_id: str) -> str | None:
        """Close the thoughts of a running answer. Returns why there is nothing to close, or None.

        A thought ends at the worker's next pass for it. If none has begun yet, the first one will
        have no text.
        """
        choices = self._open.choices(answer_id)
        if not choices:
            return "no active completion for this id"
        thinking = [each for each in choices if each.may_think]
        for each in thinking:
            each.end_thought()
            if each.given and self._socket is not None:
                self._socket.send(encode(EndThought(each.request.id)))
        return None if thinking else "the completion has no thought that is running or may begin"

    def answers(self, answer_id: str) -> bool:
        """Returns whether an answer with this id is open."""
        return bool(self._open.choices(answer_id))

    def _give_due(self) -> None:
        """Send the worker the requests that are due, if a worker is ready."""
        if self.ready is None or self._socket is None:
            return
        for request in together(self._open.due()):
            constraint = self._open.constraint(request.id)
            if constraint is not None and self._kept.get(constraint.hash) is None:
                self._kept.add(constraint.hash, constraint)
                self._socket.send(encode(constraint))
            self._socket.send(encode(request))

    def _count_open(self) -> None:
        self._metrics.in_flight.set(len(self._open))

    async def _live(self, life: int) -> Death:
        """Run one worker from its start to its end. Raises WorkerCannotStartError."""
        socket, path = self._listen(life)
        try:
            process = await start_process(f"ipc://{path}")
        except OSError as error:
            socket.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise WorkerCannotStartError(f"the worker cannot be started: {error}") from error
        self._metrics.worker_starts.inc()
        assert process.stdin is not None
        assert process.stdout is not None
        relaying = asyncio.create_task(relay(process.stdout))
        process.stdin.write(self._config.model_dump_json(exclude_unset=True).encode() + b"\n")
        self._socket, self._kept = socket, Kept()
        watch, hang = Watch(self._silence_s), None
        reader = asyncio.create_task(self._read(socket, watch))
        watching = asyncio.create_task(self._until_hung(watch))
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({reader, watching, ended}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                self.ready = None  # from now on, whenever the kernel ends the process
                hang = f"it was killed because it hung: {watching.result()}"
                logger.error("the worker hangs and is killed: %s", watching.result())
                process.kill()
            elif reader.done():
                logger.error(
                    "the worker's messages can't be read; it is killed", exc_info=reader.exception()
                )
                process.kill()
            code = await ended
        finally:
            process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _STOP_S)
            if process.returncode is None:
                process.kill()
                with contextlib.suppress(TimeoutError):  # a driver that is stuck holds it
                    await asyncio.wait_for(process.wait(), _STOP_S)
            # The worker's last lines are logged before its end is. The wait is limited, because a
            # process that the worker started may hold the pipe open.
            relayed, _ = await asyncio.wait([relaying], timeout=_STOP_S)
            relaying.cancel()
            reader.cancel()
            watching.cancel()
            self._socket = None
            socket.close()
            with contextlib.suppress(OSError):  # as when the folder is gone
                path.unlink()
        reason = relaying.result() if relaying in relayed else None
        return Death(code, hang or reason, watch.was_ready)

    async def _until_hung(self, watch: Watch) -> str:
        """Returns why the worker counts as hung, when it does.

        A tick counts as one, however late it is. So the time in which this process itself was
        stopped or busy is not held against the worker.
        """
        while True:
            await asyncio.sleep(_TICK_S)
            reason = watch.tick(_TICK_S, self._open.unanswered)
            if reason is not None:
                return reason

    def _listen(self, life: int) -> "tuple[zmq.asyncio.Socket, Path]":
        """Returns the socket of one worker's life, and its path in the private folder.

        Raises WorkerCannotStartError.
        """
        folder = self._folder.path.parent
        try:
            self._folder.renew()
            socket = self._context.socket(zmq.DEALER)
        except (OSError, zmq.ZMQError) as error:  # as when too many files are open
            raise WorkerCannotStartError(f"the worker cannot be started: {error}") from error
        socket.set_hwm(0)  # no limit; by default a sender waits if 1,000 messages are queued
        socket.linger = 0
        path = self._folder.path / f"{life}.sock"
        try:
            socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:  # a path may have 107 bytes
            socket.close()
            raise WorkerCannotStartError(
                f"TMPDIR is {str(folder)!r}, where the worker's socket cannot be made: {error}"
            ) from error
        return socket, path

    async def _read(self, socket: zmq.asyncio.Socket, watch: Watch) -> None:
        while True:
            message = decode_from_worker(await socket.recv())
            watch.heard(message)
            match message:
                case Heartbeat():
                    self._open.beat(message)
                case Loading():
                    self._change_state(message)
                case Ready():
                    for first in await self._first_messages(message.end_tokens):
                        socket.send(encode(first))
                    self.ready = message
                    self._metrics.set_ready(message)
                    self._change_state(message)
                    self._give_due()
                case Stats():
                    self._metrics.set_stats(message)
                case Draft():
                    self._open.deliver(message)
                case Block():
                    self._metrics.count_block(message)
                    self._deliver(message)
                case Cancelled() | Failed():
                    self._deliver(message)

    def _deliver(self, message: Answer) -> None:
        self._open.deliver(message)
        self._count_open()
        if is_last(message):
            self._rate.ended(asyncio.get_running_loop().time(), others=len(self._open))
        self._give_due()  # a suspect may have waited for this request's end or block
