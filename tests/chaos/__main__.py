"""`python -m tests.chaos [MINUTES] [SEED] [JSON]`: a real server in a storm, then a verdict.

Signals go to the worker of a real `easel serve` with the demo model, while clients of all dialects
stay, leave or are hostile. Every accepted request must end right, which means with the answer that
it had before the storm, or with an error of its own. The exit code is 1 if an answer was wrong, if
a request hung, or if the server did not stand afterwards. The figures are also written to the file
JSON (chaos.json in the folder for temporary files).
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import httpx

from tests.chaos.answers import Answer, BrokenError, RefusedError, answer_of
from tests.chaos.requests import Request, catalogue
from tests.chaos.storm import (
    HUNG_S,
    REQUEST_TIMEOUT_S,
    Probe,
    Tally,
    good_client,
    hostile_client,
    judge,
    logged_exceptions,
    send,
    signals,
)
from tests.running_server import Server

GOOD_CLIENTS, HOSTILE_CLIENTS = 10, 3
LINE_S = 30
SETTINGS = {
    "EASEL_MODEL": "demo",
    "EASEL_LOG_FORMAT": "json",
    "EASEL_MAX_QUEUE": "24",
    "EASEL_PREFIX_CACHE_MIB": "32",
    "EASEL_RESPONSES_KEPT_BYTES": str(2**20),
    "EASEL_REQUEST_TIMEOUT_S": str(REQUEST_TIMEOUT_S),
}


def main() -> int:
    minutes, seed, file = (*sys.argv[1:], *("20", "1", "")[len(sys.argv) - 1 :])
    complaints: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        server = Server(log, **SETTINGS)
        try:
            server.wait_until_ready()
            tally = asyncio.run(_chaos(server, 60 * float(minutes), seed, complaints))
            if (code := server.stop()) != 0:
                complaints.append(f"the server ended with exit code {code}")
        finally:
            server.kill()
        complaints += logged_exceptions(log.read_text())
    _report(tally, complaints)
    path = Path(file or Path(tempfile.gettempdir()) / "chaos.json")
    result = {"minutes": float(minutes), "seed": seed, **tally.as_json(), "complaints": complaints}
    path.write_text(json.dumps(result, indent=2))
    print(f"chaos: the figures are in {path}")
    return 1 if tally.wrong or tally.hung or complaints else 0


async def _chaos(server: Server, seconds: float, seed: str, complaints: list[str]) -> Tally:
    """Returns what happened in the storm. Adds to `complaints` what is wrong after it."""
    loop, tally = asyncio.get_running_loop(), Tally()
    expected = await _before(server.url)
    print(f"chaos: {len(expected)} requests have their answers; the storm begins", flush=True)
    start = loop.time()
    until = start + seconds
    with Probe(server.url, tally) as probe:
        tasks = [
            *(
                good_client(server.url, f"{seed} good {i}", until, expected, tally)
                for i in range(GOOD_CLIENTS)
            ),
            *(
                hostile_client(server.url, f"{seed} hostile {i}", until, tally)
                for i in range(HOSTILE_CLIENTS)
            ),
            signals(server, f"{seed} signals", until, tally),
        ]
        running = [asyncio.ensure_future(task) for task in tasks]
        pending = set(running)
        while pending:
            _, pending = await asyncio.wait(pending, timeout=LINE_S)
            print(f"{loop.time() - start:6.0f} s  {tally.line()}", flush=True)
        for task in running:
            task.result()
    complaints += probe.failures
    await _after(server, expected, tally, complaints)
    return tally


async def _before(url: str) -> list[tuple[Request, Answer]]:
    """Returns each request with its answer."""
    expected = []
    async with httpx.AsyncClient(base_url=url, timeout=HUNG_S) as http:
        for request in catalogue():
            status, body = await send(http, request)
            try:
                expected.append((request, answer_of(request.path, status, body)))
            except (BrokenError, RefusedError) as error:
                raise SystemExit(
                    f"chaos: {request.name} fails before the storm: {error}"
                ) from error
    return expected


async def _after(
    server: Server, expected: list[tuple[Request, Answer]], tally: Tally, complaints: list[str]
) -> None:
    """Check that the server is ready, has no request left and answers as before the storm.

    Only signals may have killed its worker.
    """
    try:
        await asyncio.to_thread(server.wait_until_ready)
        await asyncio.to_thread(server.wait_until_idle)
    except AssertionError:
        complaints.append("the server is not ready and idle after the storm")
        return
    deaths = int(server.metrics()[("easel_worker_starts_total",)]) - 1
    if deaths > tally.signals["SIGKILL"]:
        complaints.append(
            f"the worker died {deaths} times, but was killed {tally.signals['SIGKILL']} times"
        )
    again = Tally()
    async with httpx.AsyncClient(base_url=server.url, timeout=HUNG_S) as http:
        for request, answer in expected:
            judge(again, request, answer, *await send(http, request))
    complaints += [f"after the storm: {each}" for each in again.wrong]
    complaints += [f"after the storm: {n} times {error}" for error, n in again.errors.items()]


def _report(tally: Tally, complaints: list[str]) -> None:
    rows = [
        ("signals", sum(tally.signals.values()), dict(tally.signals)),
        ("right answers", tally.right, ""),
        ("errors of their own", sum(tally.errors.values()), dict(tally.errors)),
        ("clients that left", tally.disconnects, ""),
        ("hostile requests", sum(tally.hostile.values()), dict(sorted(tally.hostile.items()))),
        ("wrong", len(tally.wrong), ""),
        ("hung", len(tally.hung), ""),
        ("longest stall of /health/live", f"{tally.longest_stall_s:.2f} s", ""),
    ]
    for name, figure, details in rows:
        print(f"{name:30} {figure!s:>8}  {details or ''}")
    for seconds, request in tally.slowest:
        print(f"slow hostile request: {seconds:.2f} s {request[:150]}")
    sentences = [
        *(f"wrong: {each}" for each in tally.wrong),
        *(f"hung: {each}" for each in tally.hung),
        *complaints,
    ]
    for sentence in sentences[:30]:
        print(f"chaos: {sentence}")
    print(f"chaos: {f'{len(sentences)} complaints' if sentences else 'all is well'}")


if __name__ == "__main__":
    sys.exit(main())
