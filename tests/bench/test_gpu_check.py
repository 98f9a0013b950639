"""The check of a machine with a GPU, run on the CPU in tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Returns the rows of the two cheapest stages."""
    out = tmp_path_factory.mktemp("gpu_check")
    variables = {
        "GPU_CHECK_TINY": "1",
        "GPU_CHECK_STAGES": "env kernels",
        "OUT": str(out),
        "PYTHON": sys.executable,
    }
    done = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu_check.sh")],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def of_stage(results, stage):
    return [row for row in results if row["stage"] == stage]


def test_no_case_of_the_tiny_check_fails(results):
    assert [row for row in results if "FAILED" in row] == []


def test_the_machine_is_described_and_small_operations_are_timed(results):
    versions, *operations = of_stage(results, "env")
    assert versions["missing"] == []
    assert versions["versions"]["torch"]
    assert [row["case"].removeprefix("small operation: ") for row in operations] == [
        "add",
        "multiply by a row",
        "rms_norm",
        "cat",
        "topk",
        "argsort",
    ]
    assert all(row["in_graph_us"] > 0 for row in operations)


def test_each_kernel_agrees_with_float32(results):
    kernels = {row["case"]: row["ok"] for row in of_stage(results, "kernels") if "ok" in row}
    products = ("experts gate_up", "experts down", "sliding qkv")
    schemes = ("dense", "int8", "fp8", "int4")
    assert kernels == {
        **{f"{name}, 24 rows, {scheme}": True for name in products for scheme in schemes},
        "attention d=32, 64 entries": True,
        "attention d=64, 64 entries": True,
        "tail, embedding bf16": True,
        "tail, embedding int8": True,
    }
