"""`easel doctor`: what it says about machines that lack something."""

import json
import subprocess
import sys

import pytest
from rich.console import Console

from app import doctor
from app.doctor import Machine, findings, print_findings
from app.servable_models import servable_models
from app.settings import Settings
from engine.sizing.gpu import Gpu

GPU = Gpu("NVIDIA GeForce RTX 4090", 24 * 2**30)
SEEN = {"name": GPU.name, "capability": "8.9", "free": 23 * 2**30, "total": GPU.memory_bytes}
ENGINE = {
    "torch": "2.13.0",
    "torch_cuda": "13.0",
    "triton": "3.7.1",
    "transformers": "5.24.0",
    "compiler": "/usr/bin/gcc",
    "threads": 8,
    "gpu": SEEN,
}


def found(*, gpu=GPU, has_nvidia_card=True, driver="580.95.05", engine=ENGINE):
    machine = Machine(gpu, has_nvidia_card, driver, engine)
    return {each.name: each for each in findings(machine, [])}


def missing(**machine):
    return {name: each for name, each in found(**machine).items() if each.state == "missing"}


def test_a_machine_that_has_everything_lacks_nothing():
    assert missing() == {}
    assert found()["GPU"].text == "NVIDIA GeForce RTX 4090, 25.8 GB"
    assert found()["driver"].text == "580.95.05"
    assert "8.9" in found()["GPU memory"].text


def test_a_machine_without_a_gpu_lacks_nothing_but_is_told_what_it_can_serve():
    machine = {"gpu": None, "has_nvidia_card": False, "driver": ""}
    engine = {**ENGINE, "torch_cuda": None, "gpu": None, "triton": None}
    assert missing(**machine, engine=engine) == {}
    assert "demo model" in found(**machine, engine=engine)["GPU"].remedy


@pytest.mark.parametrize(
    ("machine", "name", "remedy"),
    [
        ({"gpu": None, "engine": {**ENGINE, "gpu": None}}, "GPU", "NVIDIA's driver"),
        ({"engine": {**ENGINE, "torch_cuda": None, "gpu": None}}, "torch", "--force-reinstall"),
        ({"engine": {**ENGINE, "gpu": None}}, "torch", "Update NVIDIA's driver"),
        ({"engine": {**ENGINE, "triton": None}}, "triton", "slower"),
        ({"engine": {**ENGINE, "compiler": None}}, "compiler", "gcc"),
        ({"engine": "ModuleNotFoundError: No module named 'torch'"}, "torch", "pip install"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(machine, name, remedy):
    lacks = missing(**machine)
    assert list(lacks) == [name]
    assert remedy in lacks[name].remedy


def test_a_card_on_the_bus_is_found_without_a_driver(monkeypatch, tmp_path):
    for number, (vendor, kind) in enumerate([("0x8086", "0x030000"), ("0x10de", "0x040300")]):
        device = tmp_path / f"0000:0{number}:00.0"
        device.mkdir()
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    monkeypatch.setattr(doctor, "_PCI", tmp_path)
    assert not doctor._has_nvidia_card()  # its sound is not a GPU
    (device / "class").write_text("0x030200\n")
    assert doctor._has_nvidia_card()


def test_the_drivers_version_is_read(monkeypatch, tmp_path):
    file = tmp_path / "version"
    monkeypatch.setattr(doctor, "_DRIVER", file)
    assert doctor._driver_version() == ""
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
        "GCC version:  gcc version 13.3.0\n"
    )
    assert doctor._driver_version() == "580.95.05"


def test_each_model_has_its_profile_and_whether_it_fits(monkeypatch):
    monkeypatch.setattr("app.plan_report.first_gpu", lambda: GPU)
    models = servable_models(Settings(model="demo"))
    machine = Machine(GPU, True, "580.95.05", ENGINE)
    demo, released = [each for each in findings(machine, models) if each.name.startswith("model")]
    assert demo.state == released.state == "ok"
    assert "profile rtx-4090 (experts int4, linears int8)" in released.text
    assert released.remedy.endswith("downloads it.")
    assert demo.remedy == ""


def test_a_text_with_brackets_is_printed_as_it_is(capsys):
    one = doctor.Finding("torch", "missing", "a [bold]text[/]", "Do [this].")
    print_findings([one], Console(highlight=False, soft_wrap=True))
    assert capsys.readouterr().out == ("missing  torch: a [bold]text[/]\n           Do [this].\n")


def test_this_machine_is_examined_and_the_exit_code_says_whether_something_is_missing():
    command = [sys.executable, "-m", "app", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    looked_at = {each["name"]: each for each in json.loads(done.stdout)}
    assert {"Python", "GPU", "torch", "memory", "model demo"} <= looked_at.keys()
    lacks = any(each["state"] == "missing" for each in looked_at.values())
    assert done.returncode == lacks
    assert looked_at["torch"]["text"].startswith(__import__("torch").__version__)
