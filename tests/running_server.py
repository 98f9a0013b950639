"""A real `easel serve` in a process of its own, and what tests do to it and read from it."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.polling import wait_until

START_S = 90
STOP_S = 60

Figures = dict[tuple[str, ...], float]  # of /metrics, by a metric's name and its labels' values


def figures(exposition: str) -> Figures:
    """Parse Prometheus' text format."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def begun(stream: httpx.Response) -> Iterator[str]:
    """Wait for a stream's first line. Returns the iterator of its further lines.

    The caller must keep the iterator: when it is collected, httpx closes the connection.
    """
    lines = stream.iter_lines()
    next(lines)
    return lines


class Server:
    """`easel serve` with a worker. It listens on a free port and writes its log to a file."""

    def __init__(self, log: Path, **settings: str) -> None:
        """Start the server with `settings` in its environment. It is not ready yet."""
        self.log = log
        variables = {"EASEL_PORT": "0", "EASEL_THREADS": "1", **settings}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                env={**os.environ, "TRITON_INTERPRET": "0", **variables},
                stdout=output,
                stderr=output,
            )

    @cached_property
    def url(self) -> str:
        """The server's address, which it logs before it loads anything."""
        address = re.compile(r"listening on (http://\S+?);")
        return str(self._wait_until(lambda: address.search(self.log.read_text()))[1])

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]

    @cached_property
    def http(self) -> httpx.Client:
        """A client of this server. It is closed with the server."""
        return httpx.Client(base_url=self.url, timeout=60)

    def wait_until_listening(self) -> "Server":
        """Wait until the front end answers. The worker may still be loading."""
        self._wait_until(lambda: self._status("/health/live") == 200)
        return self

    def wait_until_ready(self) -> "Server":
        self._wait_until(self.is_ready)
        return self

    def is_ready(self) -> bool:
        return self._status("/health/ready") == 200

    def wait_until_idle(self) -> None:
        """Wait until no request is open. A cancelled one is open until the worker has ended it."""
        wait_until(lambda: self.in_flight() == 0)

    def metrics(self) -> Figures:
        return figures(self.http.get("/metrics").text)

    def in_flight(self) -> float:
        return self.metrics()[("easel_requests_in_flight",)]

    def event_loop_tasks(self) -> float:
        return self.metrics()[("easel_event_loop_tasks",)]

    def ended(self) -> Counter[str]:
        """Returns how many answers have ended, by outcome."""
        return Counter(
            {
                key[1]: int(n)
                for key, n in self.metrics().items()
                if key[0] == "easel_requests_total"
            }
        )

    def worker_pid(self) -> int:
        """Returns the worker's process id. Raises IndexError while no worker process exists."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    def kill_worker(self) -> None:
        os.kill(self.worker_pid(), signal.SIGKILL)

    @contextmanager
    def stopped_worker(self) -> Iterator[int]:
        """Stop the worker with SIGSTOP, so that it does nothing inside the block.

        Yields the worker's process id when all threads of the worker are stopped.
        """
        pid = self.worker_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: _is_stopped(pid))
            yield pid
        finally:
            with suppress(ProcessLookupError):  # the block may have ended the worker
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> int:
        """End the server with SIGTERM. Returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_S)
        self._close()
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close()

    def _status(self, path: str) -> int | None:
        """Returns the status of the answer, or None if the server cannot be reached."""
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return None

    def _wait_until(self, condition: Callable[[], Any]) -> Any:
        """Wait for a condition of the start. Raises AssertionError with the log if it fails."""

        def true_while_running() -> Any:
            assert self.process.poll() is None, "the server has ended"
            return condition()

        try:
            return wait_until(true_while_running, START_S)
        except AssertionError as error:
            raise AssertionError(self.log.read_text()) from error

    def _close(self) -> None:
        if "http" in self.__dict__:
            self.http.close()


def _is_stopped(pid: int) -> bool:
    """Returns whether a signal has stopped all threads of a process."""
    try:
        states = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except FileNotFoundError:  # a thread has just ended
        return False
    return all(state.rpartition(")")[2].split()[0] == "T" for state in states)
