"""The resources of the server's processes, by the operating system, and the server's metrics."""

import os
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.running_server import Figures, figures

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """The resident memory in bytes, the open files and the server's metrics at one moment."""

    seconds: float  # since the traffic's start
    front_bytes: int
    worker_bytes: int
    front_files: int
    worker_files: int
    figures: Figures

    def line(self) -> str:
        def figure(name: str) -> int:
            return int(self.figures[(name,)])

        ended = sum(v for k, v in self.figures.items() if k[0] == "easel_requests_total")
        return (
            f"{self.seconds:6.0f} s  front end {self.front_bytes / 2**20:6.1f} MiB "
            f"{self.front_files:3d} files {figure('easel_event_loop_tasks'):3d} tasks  "
            f"worker {self.worker_bytes / 2**20:6.1f} MiB {self.worker_files:3d} files  "
            f"kept {figure('easel_kept_prefix_bytes') / 2**20:5.1f} MiB  "
            f"in flight {figure('easel_requests_in_flight'):3d}, "
            f"running {figure('easel_requests_running')}, "
            f"waiting {figure('easel_queue_depth'):3d}  ended {ended:.0f}"
        )


async def sample(http: httpx.AsyncClient, front: int, worker: int, seconds: float) -> Sample:
    """Take a sample of the front end and the worker with these process ids."""
    metrics = figures((await http.get("/metrics")).text)
    return Sample(
        seconds, _resident(front), _resident(worker), _files(front), _files(worker), metrics
    )


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def _files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
