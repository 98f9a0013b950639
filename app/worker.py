"""The front end's side of the boundary: start, watch and restart the worker, and ask it.

One process at a time, each life with a socket of its own in a private folder. Whatever happens
to the worker, every request gets its terminal message: it goes on with the next one where it stood.
"""

import asyncio
import contextlib
import logging
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import zmq
import zmq.asyncio

from app.errors import BadRequest, DeadlineExceeded, NotReady, TooManyRequests
from app.metrics import Metrics
from app.open_requests import Answer, OpenRequests
from app.service_rate import ServiceRate
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
    """The worker ended before it was ever ready; it has said why on stderr."""


class WorkerClient:
    """The worker as the routes see it. `run` keeps it alive; `generate` asks it."""

    def __init__(
        self,
        config: EngineConfig,
        metrics: Metrics,
        *,
        max_queue: int,
        on_progress: Callable[[Loading | Ready], None],
    ) -> None:
        self.ready: Ready | None = None  # the limits of the worker that is alive now
        self._config = config
        self._metrics = metrics
        self._max_queue = max_queue
        self._on_progress = on_progress
        self._open = OpenRequests()
        self._rate = ServiceRate()
        self._socket: zmq.asyncio.Socket | None = None
        self._context = zmq.asyncio.Context()
        self._folder = Path(tempfile.mkdtemp(prefix="easel-"))  # mode 0700

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
                self._metrics.queue_depth.set(0)
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
            shutil.rmtree(self._folder, ignore_errors=True)

    def admit(self, count: int = 1) -> Ready:
        """The worker's limits, if it can take so many more answers now.

        Raises NotReady, TooManyRequests, or BadRequest if it never could: asked before a response
        begins, these are a status.
        """
        if count > self._max_queue:
            raise BadRequest(
                f"n: {count} answers are more than may be open at once ({self._max_queue}).",
                param="n",
            )
        if self.ready is None:
            raise NotReady("The model is not loaded; try again soon.")
        if len(self._open) + count > self._max_queue:
            raise TooManyRequests(
                f"{len(self._open)} requests are open, which is the limit (max_queue).",
                retry_after_s=self._rate.wait_s(len(self._open) + count - self._max_queue),
            )
        return self.ready

    async def generate(
        self, request: GenerateRequest, deadline: float
    ) -> AsyncGenerator[Answer, None]:
        """The worker's messages about one request, its terminal one last.

        Leaving early cancels the request. Raises as `admit` does before the first, and
        DeadlineExceeded at `deadline`, a time of the event loop's clock.
        """
        self.admit()
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
            # The terminal message of a request that the worker has comes later and removes it.
            if not ended and self._open.cancel(request.id) and self._socket is not None:
                self._socket.send(encode(Cancel(request.id)))
            self._count_open()

    def _give_due(self) -> None:
        """Send the worker what is due, if there is one that is ready."""
        if self.ready is None or self._socket is None:
            return
        for request in self._open.due():
            self._socket.send(encode(request))

    def _count_open(self) -> None:
        self._metrics.in_flight.set(len(self._open))

    async def _live(self, life: int) -> int:
        """One worker's life, from its start to its exit code."""
        path = self._folder / f"{life}.sock"
        socket = self._context.socket(zmq.DEALER)
        socket.set_hwm(0)  # by default a sender waits at 1,000 messages
        socket.linger = 0
        socket.bind(f"ipc://{path}")
        # A session of its own: Ctrl-C reaches this process alone, which ends the worker in order.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "engine",
            f"ipc://{path}",
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._metrics.worker_starts.inc()
        assert process.stdin is not None
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
            reader.cancel()
            self._socket = None
            socket.close()
            path.unlink(missing_ok=True)

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            message = decode_from_worker(await socket.recv())
            match message:
                case Loading():
                    self._on_progress(message)
                case Ready():
                    self.ready = message
                    self._on_progress(message)
                    self._give_due()
                case Stats(waiting=waiting):
                    self._metrics.queue_depth.set(waiting)
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
        self._give_due()  # its end, or its first block, may be what another waits for
