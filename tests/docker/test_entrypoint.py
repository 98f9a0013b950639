"""The model that a container serves if none is named, and the detection of its GPU."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import DeviceProfile, profile_names
from engine.sizing.gpu import Gpu

SCRIPT = Path(__file__).parents[2] / "docker" / "entrypoint.py"
_spec = importlib.util.spec_from_file_location("entrypoint", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
entrypoint = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(entrypoint)

GIB = 2**30
SPARK = Gpu("NVIDIA GB10", 128_524_000_000)
RTX_4070 = Gpu("NVIDIA GeForce RTX 4070", 12_878_000_000)
# A fake NVIDIA driver with the functions that the entry point calls.
DRIVER = """
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return atoi(getenv("DRIVER_CODE")); }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, getenv("DRIVER_NAME"), size);
    return device != 7;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = strtoull(getenv("DRIVER_BYTES"), NULL, 10);
    return device != 7;
}
"""


def test_without_a_gpu_the_demo_model_is_served_and_the_log_explains_it():
    chosen, why = entrypoint.choose_model(None)
    assert chosen == {"EASEL_MODEL": "demo"}
    assert "no GPU" in why
    assert "--gpus all" in why
    assert "demo model" in why


def test_a_gpu_that_is_too_small_gets_the_demo_model_and_the_log_explains_it():
    chosen, why = entrypoint.choose_model(RTX_4070)
    assert chosen == {"EASEL_MODEL": "demo"}
    assert "does not fit the 12.9 GB of NVIDIA GeForce RTX 4070" in why
    assert "demo model" in why


def gpu_of(profile):
    hardware = DeviceProfile.read(profile).hardware
    return Gpu(f"NVIDIA {hardware.gpu_names[0]}", round(hardware.memory_gib * GIB))


@pytest.mark.parametrize("profile", [name for name in profile_names() if name != "demo"])
def test_a_gpu_with_a_profile_gets_the_released_model_and_never_the_cpu(profile):
    chosen, why = entrypoint.choose_model(gpu_of(profile))
    assert chosen == {"EASEL_MODEL": entrypoint.RELEASED_MODEL, "EASEL_DEVICE": "cuda"}
    assert f"with the profile {profile} takes" in why
    assert "51.6 GB" in why


@pytest.mark.parametrize(
    ("name", "gib", "served"),
    [
        # The memory that drivers report for them.
        ("NVIDIA GeForce RTX 4090", 23.6, True),
        ("NVIDIA GeForce RTX 5090", 31.4, True),
        ("NVIDIA H100 80GB HBM3", 79.2, True),
        # No profile is made for these. One for as much memory exists for all but the last.
        ("NVIDIA GeForce RTX 3090", 23.6, True),
        ("NVIDIA L40S", 44.4, True),
        ("NVIDIA L4", 22.0, False),
    ],
)
def test_the_name_and_memory_reported_by_the_driver_decide(name, gib, served):
    chosen, _why = entrypoint.choose_model(Gpu(name, round(gib * GIB)))
    assert (chosen["EASEL_MODEL"] == entrypoint.RELEASED_MODEL) == served


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
def test_a_model_that_was_named_is_never_overruled(arguments, environment, chooses):
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
def test_with_the_device_set_to_cpu_no_model_that_needs_a_gpu_is_chosen(
    arguments, environment, forbids
):
    assert entrypoint.wants_cpu(arguments, environment) is forbids


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point with a fake `easel` that prints its model, device and arguments."""
    easel = folder / "easel"
    easel.write_text('#!/bin/sh\necho "$EASEL_MODEL|$EASEL_DEVICE|$*"\n')
    easel.chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**path, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )


def driver_variables(driver: Path, gpu: Gpu, code: str = "0") -> dict[str, str]:
    """Returns environment variables with which the fake driver reports this GPU."""
    return {
        "LD_LIBRARY_PATH": str(driver),
        "DRIVER_CODE": code,
        "DRIVER_NAME": gpu.name,
        "DRIVER_BYTES": str(gpu.memory_bytes),
    }


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake driver as libcuda.so.1, which reports one GPU."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to build the fake driver with")
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "driver.c"
    source.write_text(DRIVER)
    library = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return folder


@pytest.mark.parametrize("profile", ["rtx-4090", "dgx-spark"])
def test_name_and_memory_of_the_gpu_come_from_the_driver(driver, tmp_path, profile):
    answer = run(tmp_path, "serve", "--port", "9000", **driver_variables(driver, gpu_of(profile)))
    assert answer.stdout == f"{entrypoint.RELEASED_MODEL}|cuda|serve --port 9000\n"
    assert f"with the profile {profile} takes" in answer.stderr


def test_a_driver_without_a_gpu_is_reported(driver, tmp_path):
    answer = run(tmp_path, "serve", **driver_variables(driver, SPARK, code="100"))
    assert answer.stdout == "demo||serve\n"
    assert "CUDA error 100" in answer.stderr


def test_with_the_device_set_to_cpu_the_demo_model_is_served_despite_a_gpu(driver, tmp_path):
    answer = run(tmp_path, "serve", EASEL_DEVICE="cpu", **driver_variables(driver, SPARK))
    assert answer.stdout == "demo|cpu|serve\n"


def test_other_commands_are_passed_on_unchanged(tmp_path):
    answer = run(tmp_path, "version")
    assert answer.stdout == "||version\n"
    assert answer.stderr == ""
