"""`python -m tests.soak MINUTES`: run a real server under mixed traffic, then print a verdict.

The exit code is 0 if memory is flat, nothing is left over, and the clients, the log and the metrics
agree. Otherwise it is 1, and the reasons are printed.
"""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx

from tests.running_server import Server
from tests.soak import verdict
from tests.soak.process import Sample, sample
from tests.soak.traffic import Observation, client

CLIENTS = 16
SAMPLE_S, LINE_S = 5, 30
SETTLE_S = 30  # until the last cancels are handled and idle connections are closed
# The caches are small enough to be full before the warm-up ends.
SETTINGS = {
    "EASEL_MODEL": "demo",
    "EASEL_LOG_FORMAT": "json",
    "EASEL_MAX_QUEUE": "24",
    "EASEL_PREFIX_CACHE_MIB": "32",
    "EASEL_RESPONSES_KEPT_BYTES": str(2**20),
}


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        server = Server(log, **SETTINGS)
        try:
            server.wait_until_ready()
            samples, observations = asyncio.run(_soak(server, 60 * minutes))
            code = server.stop()
        finally:
            server.kill()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    before, *during, after = samples
    complaints = [
        *verdict.memory(during),
        *verdict.leaks(before, after),
        *verdict.accounts(observations, lines, after.figures),
        *([f"the server ended with exit code {code}"] if code else []),
    ]
    _report(during, observations, lines, after)
    for complaint in complaints[:20]:
        print(f"soak: {complaint}")
    print(f"soak: {f'{len(complaints)} complaints' if complaints else 'all is well'}")
    return 1 if complaints else 0


async def _soak(server: Server, seconds: float) -> tuple[list[Sample], list[Observation]]:
    """Returns samples before, during and after the traffic, and the clients' observations."""
    front, worker, loop = server.process.pid, server.worker_pid(), asyncio.get_running_loop()
    observations: list[Observation] = []
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        start = loop.time()
        samples = [await sample(http, front, worker, 0)]
        clients = [
            asyncio.create_task(client(server.url, number, start + seconds, observations))
            for number in range(CLIENTS)
        ]
        lines = 0
        while loop.time() - start < seconds:
            await asyncio.wait(clients, timeout=SAMPLE_S, return_when=asyncio.FIRST_EXCEPTION)
            samples.append(await sample(http, front, worker, loop.time() - start))
            if samples[-1].seconds >= lines * LINE_S:
                lines += 1
                print(samples[-1].line(), flush=True)
            if any(each.done() and each.exception() for each in clients):
                break
        await asyncio.gather(*clients)
        await asyncio.sleep(SETTLE_S)
        samples.append(await sample(http, front, worker, loop.time() - start))
        print(samples[-1].line(), flush=True)
    return samples, observations


def _report(
    samples: list[Sample],
    observations: list[Observation],
    log: list[verdict.Line],
    after: Sample,
) -> None:
    for name in ("front", "worker"):
        rise, most = verdict.rise_bytes([(s.seconds, getattr(s, f"{name}_bytes")) for s in samples])
        print(f"{name}: {rise / 2**20:+.1f} MiB after the warm-up, allowed {most / 2**20:.1f}")
    ends = Counter(each.end for each in observations)
    print(f"{len(observations)} requests: " + ", ".join(f"{n} {end}" for end, n in ends.items()))
    refused = Counter(
        f"{each.status} {each.why[:50]}" for each in observations if each.end == "refused"
    )
    for why, count in refused.most_common():
        print(f"  {count:4d} {why}")
    outcomes = {k[1]: int(v) for k, v in after.figures.items() if k[0] == "easel_requests_total"}
    print(f"answers by outcome: {outcomes}")
    for name in ("easel_completion_tokens_total", "easel_blocks_total"):
        print(f"{name}: {after.figures[(name,)]:.0f}")
    p50, p95 = verdict.first_block_s(log)
    print(f"time to first block: p50 {p50:.3f} s, p95 {p95:.3f} s")


if __name__ == "__main__":
    sys.exit(main())
