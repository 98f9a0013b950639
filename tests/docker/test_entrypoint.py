"""Which model a container serves that was told none, and how it learns of its GPU."""

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
entrypoint = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(entrypoint)

GIB = 2**30
SPARK = Gpu("NVIDIA GB10", 128_524_000_000)
RTX_4070 = Gpu("NVIDIA GeForce RTX 4070", 12_878_000_000)
# What the entry point asks of NVIDIA's driver, answered by a driver of the test's own.
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


def test_without_a_gpu_it_is_the_demo_model_and_the_log_says_so_and_how_to_change_it():
    chosen, why = entrypoint.choose_model(None)
    assert chosen == {"EASEL_MODEL": "demo"}
    assert "no GPU" in why
    assert "--gpus all" in why
    assert "demo model" in why


def test_a_gpu_too_small_gets_the_demo_model_and_the_log_says_so():
    chosen, why = entrypoint.choose_model(RTX_4070)
    assert chosen == {"EASEL_MODEL": "demo"}
    assert "does not fit the 12.9 GB of NVIDIA GeForce RTX 4070" in why
    assert "demo model" in why


def gpu_of(profile):
    hardware = DeviceProfile.read(profile).hardware
    return Gpu(f"NVIDIA {hardware.gpu_names[0]}", round(hardware.memory_gib * GIB))


@pytest.mark.parametrize("profile", [name for name in profile_names() if name != "demo"])
def test_a_gpu_that_has_a_profile_gets_the_released_model_and_never_the_cpu(profile):
    chosen, why = entrypoint.choose_model(gpu_of(profile))
    assert chosen == {"EASEL_MODEL": entrypoint.RELEASED_MODEL, "EASEL_DEVICE": "cuda"}
    assert f"with the profile {profile} takes" in why
    assert "51.6 GB" in why


@pytest.mark.parametrize(
    ("name", "gib", "served"),
    [
        # As much as drivers report of them.
        ("NVIDIA GeForce RTX 4090", 23.6, True),
        ("NVIDIA GeForce RTX 5090", 31.4, True),
        ("NVIDIA H100 80GB HBM3", 79.2, True),
        # No profile is made for these, but there is one for as much memory, or for more.
        ("NVIDIA GeForce RTX 3090", 23.6, True),
        ("NVIDIA L40S", 44.4, True),
        ("NVIDIA L4", 22.0, False),
    ],
)
def test_what_the_driver_reports_of_a_gpu_decides(name, gib, served):
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
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**path, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )


def answers(driver: Path, gpu: Gpu, code: str = "0") -> dict[str, str]:
    """Variables with which the driver of the test's own has this GPU."""
    return {
        "LD_LIBRARY_PATH": str(driver),
        "DRIVER_CODE": code,
        "DRIVER_NAME": gpu.name,
        "DRIVER_BYTES": str(gpu.memory_bytes),
    }


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


@pytest.mark.parametrize("profile", ["rtx-4090", "dgx-spark"])
def test_the_driver_is_asked_for_name_and_memory(driver, tmp_path, profile):
    answer = run(tmp_path, "serve", "--port", "9000", **answers(driver, gpu_of(profile)))
    assert answer.stdout == f"{entrypoint.RELEASED_MODEL}|cuda|serve --port 9000\n"
    assert f"with the profile {profile} takes" in answer.stderr


def test_a_driver_without_a_gpu_is_told(driver, tmp_path):
    answer = run(tmp_path, "serve", **answers(driver, SPARK, code="100"))
    assert answer.stdout == "demo||serve\n"
    assert "CUDA error 100" in answer.stderr


def test_the_cpu_wanted_is_the_demo_model_beside_any_gpu(driver, tmp_path):
    answer = run(tmp_path, "serve", EASEL_DEVICE="cpu", **answers(driver, SPARK))
    assert answer.stdout == "demo|cpu|serve\n"


def test_other_commands_are_handed_on_as_they_are(tmp_path):
    answer = run(tmp_path, "version")
    assert answer.stdout == "||version\n"
    assert answer.stderr == ""
