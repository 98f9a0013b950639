"""`python -m tests.soak MINUTES`: a real server under mixed traffic, then a verdict.

Exit code 0 if memory is flat, nothing is left over and every account is settled; else 1, and why.
"""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx

from engine.config import DEMO_MODEL_PATH
from tests.conftest import Server
from tests.soak import verdict
from tests.soak.process import Sample, sample
from tests.soak.traffic import Seen, client

CLIENTS = 16
SAMPLE_S, LINE_S = 5, 30
SETTLE_S = 30  # until the last cancels are heard and idle connections closed
# Small enough to be full before the warm-up ends.
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
        server = Server(DEMO_MODEL_PATH, log, **SETTINGS)
        try:
            server.wait_until_ready()
            samples, seen = asyncio.run(_soak(server, 60 * minutes))
            code = server.stop()
        finally:
            server.process.kill()
            server.process.wait()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    before, *during, after = samples
    complaints = [
        *verdict.memory(during),
        *verdict.leaks(before, after),
        *verdict.accounts(seen, lines, after.figures),
        *([f"the server ended with exit code {code}"] if code else []),
    ]
    _report(during, seen, lines, after)
    for complaint in complaints[:20]:
        print(f"soak: {complaint}")
    print(f"soak: {f'{len(complaints)} complaints' if complaints else 'all is well'}")
    return 1 if complaints else 0


async def _soak(server: Server, seconds: float) -> tuple[list[Sample], list[Seen]]:
    """A sample before the traffic, those during it, and one when all has settled."""
    front, worker, loop = server.process.pid, server.worker_pid(), asyncio.get_running_loop()
    seen: list[Seen] = []
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        start = loop.time()
        samples = [await sample(http, front, worker, 0)]
        clients = [
            asyncio.create_task(client(server.url, number, start + seconds, seen))
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
    return samples, seen


def _report(
    samples: list[Sample], seen: list[Seen], log: list[verdict.Line], after: Sample
) -> None:
    for name in ("front", "worker"):
        rise, most = verdict.rise_bytes([(s.seconds, getattr(s, f"{name}_bytes")) for s in samples])
        print(f"{name}: {rise / 2**20:+.1f} MiB behind the warm-up, at most {most / 2**20:.1f}")
    ends = Counter(one.end for one in seen)
    print(f"{len(seen)} requests: " + ", ".join(f"{n} {end}" for end, n in ends.items()))
    refused = Counter(f"{one.status} {one.why[:50]}" for one in seen if one.end == "refused")
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
