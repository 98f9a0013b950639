"""The check of a machine with a GPU, run on the CPU in tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)  # Triton's interpreter is slow on a busy machine


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Runs the two cheapest stages. Returns the process that ran them, and their rows."""
    out = tmp_path_factory.mktemp("gpu_check")
    variables = {
        "GPU_CHECK_TINY": "1",
        "GPU_CHECK_STAGES": "env kernels",
        "GPU_CHECK_SLOW": "3",
        "OUT": str(out),
        "PYTHON": sys.executable,
    }
    process = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu_check.sh")],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = (out / "results.jsonl").read_text().splitlines()
    return process, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def results(check):
    return check[1]


def of_stage(results, stage):
    return [row for row in results if row["stage"] == stage]


def test_no_stage_and_no_case_of_the_tiny_check_fails(check):
    process, results = check
    assert process.returncode == 0, process.stdout
    assert [row for row in results if "FAILED" in row] == []


@pytest.mark.parametrize("failure", [{"FAILED": "RuntimeError: no"}, {"ok": False}])
def test_the_summary_shows_a_failure_and_exits_with_status_1(tmp_path, failure):
    rows = [{"stage": "kernels", "case": "good", "ok": True}]
    rows.append({"stage": "kernels", "case": "bad", **failure})
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    process = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check", "summary"],
        cwd=ROOT,
        env={**os.environ, "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "bad" in process.stdout
    assert json.dumps(failure) in process.stdout


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
