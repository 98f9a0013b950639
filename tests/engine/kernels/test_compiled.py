"""What the compiler makes of the kernels, for GPUs that this machine need not have.

The compiler runs in a process of its own, because this one runs Triton's interpreter.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from bench import compiled, released_launches, sass
from engine.weights.quantization import FromDense, quantize

ROOT = Path(__file__).resolve().parents[3]
MOST_A_WEIGHT = 6.5  # instructions to dequantise a weight and multiply 64 rows or 32 by it
MOST_A_HOPPER_WEIGHT = 4.0  # where reading a 4-bit weight leaves time for about four
ROWS_OF_EXPERTS = "2048 rows of 128 groups"


def layout(weight):
    """Returns a weight's layout as it is in `released_launches.LAYOUTS`."""
    return weight.scheme, weight.scales.shape[-1], weight.scales.dtype, weight.zeros is not None


@pytest.mark.parametrize("scheme", get_args(FromDense))
def test_the_layouts_that_profiles_make_are_compiled(scheme):
    made = quantize(torch.ones(16, 2816), scheme, torch.device("cpu"))
    assert layout(made) in {each[1:] for each in released_launches.LAYOUTS}


def counted(folder, *options):
    """Returns the rows of `easel bench sass`."""
    file = folder / "rows.json"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bench", "sass", *options, "--json", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Every kernel on three GPUs, and on two others those of experts."""
    folder = tmp_path_factory.mktemp("sass")
    all_kernels = counted(folder, *(f"--gpu={gpu}" for gpu in ("8.9", "9.0", "12.0")))
    experts = counted(folder, "--gpu=10.3", "--gpu=12.1", f"--kernel={ROWS_OF_EXPERTS}")
    return all_kernels + experts


@pytest.mark.parametrize("gpus", [None, ["9.0"], ["12.1", "8.9"]])
def test_gpus_are_found_by_their_compute_capability(gpus):
    found = [".".join(map(str, target.capability)) for target in sass.find_targets(gpus)]
    assert found == (gpus or ["8.9", "9.0", "10.3", "12.0", "12.1"])


def test_an_unknown_compute_capability_is_refused():
    with pytest.raises(ValueError, match=r"'7.5' is not known; known: 8.9, 9.0, "):
        sass.find_targets(["7.5"])


def test_the_inner_loop_is_the_longest_one_with_products():
    listing = [("A", None), ("B", None), ("HMMA.1", None), ("BRA", 2), ("NOP", None), ("BRA", 0)]
    assert sass.inner_loop(listing) == ["A", "B", "HMMA.1", "BRA", "BRA"]
    assert sass.inner_loop([("A", None), ("BRA", 0), ("HMMA", None), ("BRA", 2)]) == ["HMMA", "BRA"]
    assert sass.inner_loop([("A", None)]) == []


def of_made_experts(rows):
    """Returns the rows of experts in the layouts that are made while loading."""
    wanted = tuple(f"{scheme}, {ROWS_OF_EXPERTS}" for scheme in get_args(FromDense))
    return [row for row in rows if row["case"].split(", ", 1)[1] in wanted]


@pytest.mark.timeout(900)
def test_every_kernel_compiles_and_fits_the_shared_memory_of_each_gpu(rows):
    limits = {target.capability: target.shared_bytes / 1024 for target in compiled.TARGETS}
    assert {tuple(row["capability"]) for row in rows} == set(limits)
    for row in rows:
        assert row["shared_kib"] <= limits[tuple(row["capability"])], row


@pytest.mark.timeout(900)
def test_dequantising_takes_few_instructions(rows):
    counts = of_made_experts(rows)
    assert len(counts) == 3 * len(compiled.TARGETS)
    for row in counts:
        hopper = row["capability"] == [9, 0]
        assert 2 < row["a_weight"] <= (MOST_A_HOPPER_WEIGHT if hopper else MOST_A_WEIGHT), row


@pytest.mark.timeout(900)
def test_products_and_attention_keep_their_registers(rows):
    """A few of the 900 instructions of attention on 9.0 read registers from memory."""
    for row in rows:
        if "GGUF" not in row["case"] and row["capability"] in ([8, 9], [9, 0], [12, 0]):
            assert row["local_memory"] <= 0.02 * row["instructions"], row
