"""What must be the same after any input: both processes alive, nothing open, nothing grown."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.conftest import Server

SETTLE_S = 30
DESCRIPTORS = 20  # connections that clients keep open, above those before


@dataclass(frozen=True)
class Vitals:
    """Of the front end and of its worker."""

    worker: int  # its process id
    resident_bytes: tuple[int, ...]
    descriptors: tuple[int, ...]

    @staticmethod
    def of(server: Server) -> "Vitals":
        worker = server.worker_pid()
        both = [Path("/proc") / str(pid) for pid in (server.process.pid, worker)]
        resident = [re.findall(r"VmRSS:\s+(\d+)", (p / "status").read_text())[0] for p in both]
        open_files = [len(list((p / "fd").iterdir())) for p in both]
        return Vitals(worker, tuple(1024 * int(kib) for kib in resident), tuple(open_files))


def in_flight(server: Server) -> float:
    metrics = httpx.get(f"{server.url}/metrics", timeout=SETTLE_S).text
    return float(re.findall(r"^easel_requests_in_flight (.+)$", metrics, re.MULTILINE)[0])


@contextmanager
def unharmed(server: Server, grown_bytes: int) -> Iterator[None]:
    """Checks that what runs inside did no harm; memory may grow by no more than this."""
    before, log_before = Vitals.of(server), len(server.log.read_text())
    yield
    deadline = time.monotonic() + SETTLE_S
    while in_flight(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert in_flight(server) == 0
    after = Vitals.of(server)
    assert after.worker == before.worker, "the worker died"
    assert "Traceback" not in server.log.read_text()[log_before:]
    for now, then in zip(after.descriptors, before.descriptors, strict=True):
        assert now <= then + DESCRIPTORS
    for now, then in zip(after.resident_bytes, before.resident_bytes, strict=True):
        assert now <= then + grown_bytes
