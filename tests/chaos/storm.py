"""The storm: signals to the worker, clients that stay or leave, hostile clients, and a probe.

All of them write what they see into one `Tally`.
"""

import asyncio
import http.client
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.chaos import hostile
from tests.chaos.answers import Answer, BrokenError, RefusedError, answer_of
from tests.chaos.requests import Request
from tests.running_server import Server

REQUEST_TIMEOUT_S = 60  # the server's own; a request without an end for this long and half is hung
HUNG_S = 90
LIFE_S = 5  # for which a worker is ready before most kills
LEAVES = 0.3  # the share of requests whose client leaves
# Errors that a request may have because of what happens to the worker or because of other clients.
EXPECTED = {"not_ready", "queue_full", "worker_died", "deadline_exceeded"}
EXPECTED_TYPES = {"overloaded_error", "rate_limit_error", "timeout_error"}  # of /v1/messages
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)


@dataclass
class Tally:
    """What happened. `wrong` and `hung` are sentences, one for each such request."""

    right: int = 0
    disconnects: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # of good requests
    hostile: Counter[str] = field(default_factory=Counter)  # hostile requests by status
    signals: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    longest_stall_s: float = 0.0
    slowest: list[tuple[float, str]] = field(default_factory=list)  # hostile: seconds, request

    def took(self, seconds: float, name: str) -> None:
        """Remember the five hostile requests that took longest."""
        self.slowest = sorted([*self.slowest, (round(seconds, 2), name)])[-5:]

    def line(self) -> str:
        return (
            f"{sum(self.signals.values())} signals, {self.right} right, "
            f"{sum(self.errors.values())} errors, {self.disconnects} disconnects, "
            f"{sum(self.hostile.values())} hostile, {len(self.wrong)} wrong, "
            f"{len(self.hung)} hung, longest stall {self.longest_stall_s:.2f} s"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "right": self.right,
            "errors": dict(self.errors),
            "disconnects": self.disconnects,
            "hostile": dict(self.hostile),
            "signals": dict(self.signals),
            "longest_stall_s": round(self.longest_stall_s, 3),
            "slowest": self.slowest,
            "wrong": self.wrong,
            "hung": self.hung,
        }


def judge(tally: Tally, request: Request, expected: Answer, status: int, body: str) -> None:
    """Count a response as right, as an error of its own, or as wrong."""
    try:
        answer = answer_of(request.path, status, body)
    except RefusedError as error:
        where, _, code = str(error).partition(" ")
        if code in EXPECTED | EXPECTED_TYPES or _is_own_failure(request, body):
            tally.errors[f"{where} {code}"] += 1
        else:
            tally.wrong.append(f"{request.name}: a good request got the error {error}")
    except BrokenError as error:
        tally.wrong.append(f"{request.name}: {error}")
    else:
        if answer == expected:
            tally.right += 1
        else:
            tally.wrong.append(f"{request.name}: {_difference(answer, expected)}")


def _is_own_failure(request: Request, body: str) -> bool:
    """Returns whether Anthropic's nameless error is that the worker died twice."""
    return request.path == "/v1/messages" and "worker died twice" in body


def _difference(answer: Answer, expected: Answer) -> str:
    names = [name for name in {**expected, **answer} if answer.get(name) != expected.get(name)]
    return "; ".join(
        f"{name} is {answer.get(name)!r:.300}, not {expected.get(name)!r:.300}" for name in names
    )


async def send(http: httpx.AsyncClient, request: Request) -> tuple[int, str]:
    """Returns the status and the body of the response to a request."""
    response = await http.post(request.path, json=request.body)
    return response.status_code, response.text


async def good_client(
    url: str,
    seed: str,
    until: float,
    expected: list[tuple[Request, Answer]],
    tally: Tally,
) -> None:
    """Send one good request after the other, and stay for the answer or leave."""
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    async with httpx.AsyncClient(base_url=url, timeout=HUNG_S) as http:
        while loop.time() < until:
            request, answer = rng.choice(expected)
            if rng.random() < LEAVES:
                tally.disconnects += await _leave(http, request, rng)
                continue
            refused = sum(tally.errors.values())
            try:
                async with asyncio.timeout(HUNG_S):
                    status, body = await send(http, request)
            except (TimeoutError, httpx.TimeoutException):
                tally.hung.append(f"{request.name}: no end after {HUNG_S} s")
            except httpx.TransportError as error:
                tally.wrong.append(f"{request.name}: cut off with {error!r}")
            else:
                judge(tally, request, answer, status, body)
            if sum(tally.errors.values()) > refused:
                await asyncio.sleep(rng.uniform(0.5, 1.5))  # as a client that tries again


async def _leave(http: httpx.AsyncClient, request: Request, rng: random.Random) -> bool:
    """Send a request and leave, at once or while the answer comes. Returns whether it left."""
    with suppress(TimeoutError, httpx.TransportError):
        async with (
            asyncio.timeout(rng.choice([0.005, 0.05, 0.2, 1])),
            http.stream("POST", request.path, json=request.body) as response,
        ):
            events = 0
            async for _ in response.aiter_lines():
                events += 1
                if events == 9:
                    return True
            return False
    return True


async def hostile_client(url: str, seed: str, until: float, tally: Tally) -> None:
    """Send one hostile request after the other. Each must get a status, or an end if it is raw."""
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    async with httpx.AsyncClient(base_url=url, timeout=HUNG_S) as http:
        while loop.time() < until:
            if rng.random() < 0.3:
                with suppress(OSError):
                    tally.hostile[await _send_raw(url, hostile.raw(rng))] += 1
                continue
            path, headers, content = hostile.http_body(rng)
            name, start = f"{path} with {content[:200]!r}", loop.time()
            try:
                async with asyncio.timeout(HUNG_S):
                    response = await http.post(path, content=content, headers=headers)
            except (TimeoutError, httpx.TimeoutException):
                tally.hung.append(f"hostile {name}: no end after {HUNG_S} s")
            except httpx.TransportError as error:
                tally.wrong.append(f"hostile {name}: cut off with {error!r}")
            else:
                tally.hostile[str(response.status_code)] += 1
                tally.took(loop.time() - start, name)
                if response.status_code == 500 and "worker died" not in response.text:
                    tally.wrong.append(f"hostile {name}: status 500 {response.text[:300]}")


async def _send_raw(url: str, data: bytes) -> str:
    """Send bytes. Returns the status, or how the connection ended, or that this client left."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    answer = b""
    try:
        writer.write(data)
        async with asyncio.timeout(1):
            answer = await reader.readline()
    except TimeoutError:
        return "left"
    except (OSError, ValueError):
        return "closed"
    finally:
        writer.close()
    return answer.split()[1].decode(errors="replace") if len(answer.split()) > 1 else "closed"


async def signals(server: Server, seed: str, until: float, tally: Tally) -> None:
    """Send signals to the worker, also while it loads. A stopped worker continues after a while."""
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    ready_since = loop.time()
    while loop.time() < until:
        await asyncio.sleep(rng.uniform(0.5, 4))
        number = rng.choices(SIGNALS, [4, 4, 2])[0]
        if not await asyncio.to_thread(server.is_ready):
            ready_since = loop.time()
        may_kill = loop.time() - ready_since > LIFE_S or rng.random() < 0.05
        if number == signal.SIGKILL and not may_kill:
            number = signal.SIGSTOP  # or there would hardly be a worker to answer
        with suppress(IndexError, ProcessLookupError, FileNotFoundError):
            process = _Process(server.worker_pid())
            process.send(number)
            tally.signals[number.name] += 1
            if number == signal.SIGSTOP:
                await asyncio.sleep(rng.uniform(0.05, 2.5))
                process.send(signal.SIGCONT)
                tally.signals["SIGCONT"] += 1
            process.close()


class _Process:
    """A process by its descriptor, so that no signal reaches another one with the same id."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._descriptor, number)

    def close(self) -> None:
        os.close(self._descriptor)


class Probe:
    """A thread that asks /health/live all the time, from outside of the clients' event loop."""

    def __init__(self, url: str, tally: Tally) -> None:
        self._address, self._tally = urlsplit(url), tally
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failures: list[str] = []

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.05):
            start = time.monotonic()
            connection = http.client.HTTPConnection(
                str(self._address.hostname), self._address.port, timeout=HUNG_S
            )
            try:
                connection.request("GET", "/health/live")
                if connection.getresponse().status != 200:
                    self.failures.append("/health/live is not 200")
            except OSError as error:
                self.failures.append(f"/health/live: {error!r}")
            finally:
                connection.close()
            took = time.monotonic() - start
            self._tally.longest_stall_s = max(self._tally.longest_stall_s, took)


def logged_exceptions(log: str) -> list[str]:
    """Returns the exceptions in a log of JSON lines: bugs of the server."""
    lines = [json.loads(line) for line in log.splitlines()]
    return [f"log: {line['exception'][-500:]}" for line in lines if "exception" in line]
