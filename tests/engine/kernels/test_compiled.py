import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.kernels import compiled

ROOT = Path(__file__).resolve().parents[3]
# The limit of a thread block (CUDA C++ Programming Guide, technical specifications).
SHARED_BYTES = {89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}


@pytest.mark.timeout(600)
def test_every_kernel_compiles_and_fits_the_shared_memory_of_each_gpu():
    """Compiles in a process of its own, because this one runs Triton's interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", compiled.__name__],
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["capability"] for line in lines} == set(SHARED_BYTES)
    for line in lines:
        assert 0 < line["shared_bytes"] <= SHARED_BYTES[line["capability"]], line
