"""Which model a container serves that was told none, and how it learns of its GPU."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "entrypoint.py"
_spec = importlib.util.spec_from_file_location("entrypoint", SCRIPT)
entrypoint = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(entrypoint)

SPARK, H100, RTX_4090 = 128_524_000_000, 85_029_000_000, 25_757_000_000
# What the entry point asks of NVIDIA's driver, answered by a driver of the test's own.
DRIVER = """
#include <stddef.h>
#include <stdlib.h>
int cuInit(unsigned flags) { return atoi(getenv("DRIVER_CODE")); }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = strtoull(getenv("DRIVER_BYTES"), NULL, 10);
    return device != 7;
}
"""


def test_without_a_gpu_it_is_the_demo_model_and_the_log_says_so_and_how_to_change_it():
    chosen, why = entrypoint.choose_model(None)
    assert chosen == {"EASEL_MODEL": "demo"}
    assert "no GPU" in why
    assert "--gpus all" in why
    assert "demo model" in why


def test_a_gpu_too_small_gets_the_demo_model_and_the_log_says_so():
    chosen, why = entrypoint.choose_model(RTX_4090)
    assert chosen == {"EASEL_MODEL": "demo"}
    assert "does not fit the GPU's 26 GB" in why
    assert "demo model" in why


@pytest.mark.parametrize("gpu_bytes", [H100, SPARK])
def test_a_gpu_with_room_gets_the_released_model_and_never_the_cpu(gpu_bytes):
    chosen, why = entrypoint.choose_model(gpu_bytes)
    assert chosen == {"EASEL_MODEL": entrypoint.RELEASED_MODEL, "EASEL_DEVICE": "cuda"}
    assert "51.6 GB" in why


@pytest.mark.parametrize(
    ("arguments", "environment", "chooses"),
    [
        (["serve"], {}, True),
        (["serve", "--port", "9000"], {}, True),
        (["serve"], {"EASEL_MODEL": ""}, True),
        (["serve"], {"EASEL_MODEL": "demo"}, False),
        (["serve", "--model", "demo"], {}, False),
        (["serve", "--model=demo"], {}, False),
        (["serve"], {"EASEL_DEVICE": "cpu"}, True),
        (["serve", "--help"], {}, False),
        (["version"], {}, False),
        ([], {}, False),
    ],
)
def test_a_model_that_a_person_names_is_never_overruled(arguments, environment, chooses):
    assert entrypoint.chooses_model(arguments, environment) is chooses


@pytest.mark.parametrize(
    ("arguments", "environment", "forbids"),
    [
        (["serve"], {}, False),
        (["serve"], {"EASEL_DEVICE": "cuda"}, False),
        (["serve"], {"EASEL_DEVICE": "cpu"}, True),
        (["serve", "--device", "cpu"], {}, True),
        (["serve", "--device=cpu"], {"EASEL_DEVICE": "cuda"}, True),
        (["serve", "--device", "auto"], {"EASEL_DEVICE": "cpu"}, False),
    ],
)
def test_a_person_who_wants_the_cpu_gets_no_model_that_needs_the_gpu(
    arguments, environment, forbids
):
    assert entrypoint.wants_cpu(arguments, environment) is forbids


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The entry point, with an `easel` that tells what it was started as."""
    easel = folder / "easel"
    easel.write_text('#!/bin/sh\necho "$EASEL_MODEL|$EASEL_DEVICE|$*"\n')
    easel.chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**path, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 that has one GPU."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here to make a driver with")
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "driver.c"
    source.write_text(DRIVER)
    library = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return folder


def test_the_driver_is_asked_for_the_memory(driver, tmp_path):
    gpu = {"LD_LIBRARY_PATH": str(driver), "DRIVER_CODE": "0", "DRIVER_BYTES": str(SPARK)}
    answer = run(tmp_path, "serve", "--port", "9000", **gpu)
    assert answer.stdout == f"{entrypoint.RELEASED_MODEL}|cuda|serve --port 9000\n"
    assert "129 GB have room" in answer.stderr


def test_a_driver_without_a_gpu_is_told(driver, tmp_path):
    gpu = {"LD_LIBRARY_PATH": str(driver), "DRIVER_CODE": "100", "DRIVER_BYTES": "0"}
    answer = run(tmp_path, "serve", **gpu)
    assert answer.stdout == "demo||serve\n"
    assert "CUDA error 100" in answer.stderr


def test_the_cpu_wanted_is_the_demo_model_beside_any_gpu(driver, tmp_path):
    gpu = {"LD_LIBRARY_PATH": str(driver), "DRIVER_CODE": "0", "DRIVER_BYTES": str(SPARK)}
    answer = run(tmp_path, "serve", EASEL_DEVICE="cpu", **gpu)
    assert answer.stdout == "demo|cpu|serve\n"


def test_other_commands_are_handed_on_as_they_are(tmp_path):
    answer = run(tmp_path, "version")
    assert answer.stdout == "||version\n"
    assert answer.stderr == ""
