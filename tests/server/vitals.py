"""Checks that input did no harm: both processes live, nothing stays open and memory is bounded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.polling import wait_until
from tests.running_server import Server

SETTLE_S = 30
DESCRIPTORS = 20  # connections that clients may keep open in addition to those before


@dataclass(frozen=True)
class Vitals:
    """The figures of the front end and of its worker at one moment, in this order."""

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


@contextmanager
def unharmed(server: Server, grown_bytes: int) -> Iterator[None]:
    """Check that the block does no harm. Each process may grow by at most `grown_bytes`."""
    before, log_before = Vitals.of(server), len(server.log.read_text())
    yield
    wait_until(lambda: server.in_flight() == 0, SETTLE_S)
    after = Vitals.of(server)
    assert after.worker == before.worker, "the worker died"
    assert "Traceback" not in server.log.read_text()[log_before:]
    for now, then in zip(after.descriptors, before.descriptors, strict=True):
        assert now <= then + DESCRIPTORS
    for now, then in zip(after.resident_bytes, before.resident_bytes, strict=True):
        assert now <= then + grown_bytes
