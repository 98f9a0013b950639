import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from engine.weights.quantization import FromDense, quantize
from tests.engine.kernels import compiled

ROOT = Path(__file__).resolve().parents[3]
# The limit of a thread block (CUDA C++ Programming Guide, technical specifications).
SHARED_BYTES = {89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024, 121: 99 * 1024}


def layout(weight):
    """Returns a weight's layout as it is in `compiled.LAYOUTS`."""
    return weight.scheme, weight.scales.shape[-1], weight.scales.dtype, weight.zeros is not None


@pytest.mark.parametrize("scheme", get_args(FromDense))
def test_the_layouts_that_profiles_make_are_compiled(scheme):
    made = quantize(torch.ones(16, 2816), scheme, torch.device("cpu"))
    assert layout(made) in {each[1:] for each in compiled.LAYOUTS}


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
        assert line["shared_bytes"] <= SHARED_BYTES[line["capability"]], line
