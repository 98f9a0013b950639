"""The worker as the front end sees it: starts, watches and restarts its process, and asks it.

There is one process at a time. Each of its lives has a socket of its own in a private folder.
Whatever happens to the worker, every request gets its terminal message: after a death it goes on in
the next worker where it stood.
"""

import asyncio
import contextlib
import logging
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Protocol

import zmq
import zmq.asyncio

from app.engine_client.open_requests import Answer, OpenRequests
from app.engine_client.private_folder import PrivateFolder
from app.engine_client.service_rate import ServiceRate
from app.engine_client.worker_log import relay
from app.errors import BadRequest, DeadlineExceeded, NotReady, TooManyRequests
from app.metrics import Metrics
from engine.config import EngineConfig
from engine.messages import (
    Block,
    Cancel,
    Done,
    Failed,
    GenerateRequest,
    Loading,
    Ready,
    Stats,
    decode_from_worker,
    encode,
)

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 30.0
_STOP_S = 5.0


class WorkerCannotStartError(RuntimeError):
    """The worker ended before it was ever ready. It has said why on stderr."""


class Admit(Protocol):
    """Admits so many answers for a request, or raises. Returns the limits that hold for them."""

    def __call__(self, count: int = 1, *, param: str = "n") -> Ready: ...


class WorkerClient:
    """The worker as the endpoints see it. `run` keeps it alive, `generate` asks it."""

    def __init__(
        self,
        config: EngineConfig,
        metrics: Metrics,
        *,
        max_queue: int,
    ) -> None:
        self.ready: Ready | None = None  # the limits of the worker that is alive now
        self._state: Loading | Ready | None = None
        self._state_changed = asyncio.Event()
        self._config = config
        self._metrics = metrics
        self._max_queue = max_queue
        self._open = OpenRequests()
        self._admitted = 0  # answers that HTTP requests hold a place for
        self._rate = ServiceRate()
        self._socket: zmq.asyncio.Socket | None = None
        self._context = zmq.asyncio.Context()
        self._folder = PrivateFolder(Path(tempfile.gettempdir()))

    async def run(self) -> None:
        """Start the worker and start it again when it dies, until cancelled.

        Raises WorkerCannotStartError if the first one never gets ready.
        """
        ever_ready, backoff, life = False, _FIRST_BACKOFF_S, 0
        try:
            while True:
                code = await self._live(life)
                was_ready, self.ready = self.ready is not None, None
                ever_ready = ever_ready or was_ready
                self._open.worker_died()
                self._count_open()
                self._metrics.set_stats(Stats(waiting=0, running=0))
                if not ever_ready:
                    raise WorkerCannotStartError(f"the worker ended with exit code {code}")
                backoff = _FIRST_BACKOFF_S if was_ready else min(2 * backoff, _LONGEST_BACKOFF_S)
                logger.error("the worker ended with code %s; again in %.0f s", code, backoff)
                await asyncio.sleep(backoff)
                life += 1
        finally:
            self.ready = None
            self._open.fail_all("The server is shutting down.")
            self._count_open()
            self._context.destroy(linger=0)
            self._folder.remove()

    async def states(self) -> AsyncIterator[Loading | Ready]:
        """Yields how far the worker is whenever that has changed. There may be one reader.

        Nothing waits for the reader: if it is slow, it gets the newest state only.
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
        """Returns the limits of the worker that is alive now. Raises NotReady if there is none."""
        if self.ready is None:
            raise NotReady("The model is not loaded; try again soon.")
        return self.ready

    @contextlib.contextmanager
    def admission(self) -> Iterator[Admit]:
        """Gives an HTTP request what it is admitted by. Its places are held until the block ends.

        A request is admitted before its response begins, so a refusal is a status. Nobody else can
        take its place before the worker has the request. Admitting raises NotReady,
        TooManyRequests, or BadRequest, naming `param`, if so many answers can never be open.
        """
        held = 0

        def admit(count: int = 1, *, param: str = "n") -> Ready:
            nonlocal held
            if count > self._max_queue:
                raise BadRequest(
                    f"{param}: {count} answers are more than may be open at once "
                    f"({self._max_queue}).",
                    param=param,
                )
            limits = self.limits()
            # A cancelled answer stays open until the worker has confirmed its end.
            taken = max(self._admitted, len(self._open))
            if taken + count > self._max_queue:
                raise TooManyRequests(
                    f"{taken} requests are open; at most {self._max_queue} may be (max_queue).",
                    retry_after_s=self._rate.wait_s(taken + count - self._max_queue),
                )
            held += count
            self._admitted += count
            return limits

        try:
            yield admit
        finally:
            self._admitted -= held

    async def generate(
        self, request: GenerateRequest, deadline: float
    ) -> AsyncGenerator[Answer, None]:
        """Yields the worker's messages about one request, the terminal one last.

        The request must have been admitted. Without a worker it waits for the next one. Leaving
        early cancels it. Raises DeadlineExceeded at `deadline`, a time of the event loop's clock.
        """
        opened = self._open.add(request)
        self._count_open()
        self._give_due()
        ended = False
        try:
            while not ended:
                async with asyncio.timeout_at(deadline):
                    answer = await opened.answers.get()
                ended = not isinstance(answer, Block)
                yield answer
        except TimeoutError as error:
            raise DeadlineExceeded("The answer took longer than it may (timeout).") from error
        finally:
            # If the worker has the request, its terminal message comes later and removes it.
            if not ended and self._open.cancel(request.id) and self._socket is not None:
                self._socket.send(encode(Cancel(request.id)))
            self._count_open()

    def _give_due(self) -> None:
        """Send the worker the requests that are due, if a worker is ready."""
        if self.ready is None or self._socket is None:
            return
        for request in self._open.due():
            self._socket.send(encode(request))

    def _count_open(self) -> None:
        self._metrics.in_flight.set(len(self._open))

    async def _live(self, life: int) -> int:
        """Run one worker from its start to its end. Returns its exit code."""
        path = self._folder.path / f"{life}.sock"
        socket = self._context.socket(zmq.DEALER)
        socket.set_hwm(0)  # by default a sender waits at 1,000 messages
        socket.linger = 0
        socket.bind(f"ipc://{path}")
        # The worker has a process group of its own, so that Ctrl-C reaches only this process, which
        # then ends the worker in order. It has no session of its own, because the kernel wakes a
        # stopped group whose parent is gone only inside one session.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "engine",
            f"ipc://{path}",
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            process_group=0,
        )
        self._metrics.worker_starts.inc()
        assert process.stdin is not None
        assert process.stderr is not None
        relaying = asyncio.create_task(relay(process.stderr))
        process.stdin.write(self._config.model_dump_json(exclude_unset=True).encode() + b"\n")
        self._socket = socket
        reader = asyncio.create_task(self._read(socket))
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({reader, ended}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                logger.error("the worker can't be understood", exc_info=reader.exception())
                process.kill()
            return await ended
        finally:
            process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _STOP_S)
            if process.returncode is None:
                process.kill()
                await process.wait()
            # The worker's last lines are logged before its end is. A process that it started may
            # hold stderr open, so this does not wait for ever.
            await asyncio.wait([relaying], timeout=_STOP_S)
            relaying.cancel()
            reader.cancel()
            self._socket = None
            socket.close()
            path.unlink(missing_ok=True)

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            message = decode_from_worker(await socket.recv())
            match message:
                case Loading():
                    self._change_state(message)
                case Ready():
                    self.ready = message
                    self._change_state(message)
                    self._give_due()
                case Stats():
                    self._metrics.set_stats(message)
                case Block():
                    self._metrics.blocks.inc()
                    self._metrics.denoising_steps.inc(message.denoising_steps)
                    self._metrics.block_time.observe(message.duration_s)
                    self._metrics.speculations.inc(message.speculations)
                    self._metrics.speculations_won.inc(message.speculation_won)
                    self._metrics.rerolls.inc(message.rerolled)
                    self._deliver(message)
                case Done() | Failed():
                    self._deliver(message)

    def _deliver(self, message: Answer) -> None:
        self._open.deliver(message)
        self._count_open()
        if not isinstance(message, Block):
            self._rate.ended(asyncio.get_running_loop().time(), others=len(self._open))
        self._give_due()  # another request may wait for this one's end or first block
