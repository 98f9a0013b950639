"""The machine's GPU, as NVIDIA's driver tells it: the front end has no torch to ask."""

import shutil
import subprocess

from engine.memory import total_ram_bytes
from engine.profiles import Gpu

_QUERY = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
_ANSWERS_WITHIN_S = 30


def first_gpu() -> Gpu | None:
    """The first one that the driver lists, or None if there is no driver or no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = subprocess.run(
        [program, *_QUERY], capture_output=True, text=True, timeout=_ANSWERS_WITHIN_S, check=False
    )
    lines = asked.stdout.strip().splitlines()
    return parse_gpu(lines[0]) if asked.returncode == 0 and lines else None


def parse_gpu(line: str) -> Gpu:
    """A line of it, 'NVIDIA H100 80GB HBM3, 81559': MiB, or '[N/A]' for a share of the system's."""
    name, memory = line.rsplit(",", 1)
    mib = memory.strip()
    return Gpu(name.strip(), int(mib) * 2**20 if mib.isdigit() else total_ram_bytes())
