"""`easel doctor`: what this machine has for Easel, what is missing, and how to get it.

What torch knows comes from `engine.machine`, in a process of its own. What is known of the GPU
without torch comes from its driver and from Linux, so that a missing driver or a torch without CUDA
can be told apart.
"""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from app.servable_models import ServableModel
from app.terminal import command_line
from engine.sizing.gpu import Gpu
from engine.sizing.memory import available_ram_bytes, total_ram_bytes
from engine.sizing.plan import gb

_PCI = Path("/sys/bus/pci/devices")
_DRIVER = Path("/proc/driver/nvidia/version")
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # a PCI device's vendor, and how the class of a GPU begins
_ENGINE_S = 120

State = Literal["ok", "note", "missing"]
_MARKS: dict[State, str] = {
    "ok": "[green]ok[/]     ",
    "note": "[yellow]note[/]   ",
    "missing": "[red]missing[/]",
}


@dataclass(frozen=True)
class Finding:
    """Something that was looked at. `remedy` says what to do about it, if there is something."""

    name: str
    state: State
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """What is known of this machine. `engine` are `engine.machine`'s facts, or why it failed."""

    gpu: Gpu | None  # as the driver reports it
    has_nvidia_card: bool  # on the PCI bus, whatever drives it
    driver: str  # its version, or empty
    engine: dict[str, Any] | str

    @classmethod
    def here(cls, gpu: Gpu | None) -> "Machine":
        return cls(gpu, gpu is not None or _has_nvidia_card(), _driver_version(), _engine_facts())


def findings(machine: Machine, models: list[ServableModel]) -> Iterator[Finding]:
    """Yields what there is to say, the machine first and the models last."""
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield from _gpu(machine)
    if isinstance(machine.engine, str):
        yield Finding(
            "torch", "missing", machine.engine, "Install Easel again: pip install easel-server."
        )
    else:
        yield from _libraries(machine, machine.engine)
    memory = f"{gb(available_ram_bytes())} free of {gb(total_ram_bytes())}, with swap"
    yield Finding("memory", "ok", memory)
    yield from map(_model, models)


def print_findings(found: list[Finding], console: Console) -> None:
    """Print each finding as a line, and its remedy below it."""
    for each in found:
        console.print(f"{_MARKS[each.state]}  {each.name}: ", end="")
        console.print(each.text, markup=False)
        if each.remedy:
            console.print(f"           {each.remedy}", markup=False)


def findings_json(found: list[Finding]) -> list[dict[str, str]]:
    return [asdict(each) for each in found]


def _gpu(machine: Machine) -> Iterator[Finding]:
    if machine.gpu is not None:
        yield Finding("GPU", "ok", f"{machine.gpu.name}, {gb(machine.gpu.memory_bytes)}")
    elif machine.has_nvidia_card:
        yield Finding(
            "GPU",
            "missing",
            "there is a card of NVIDIA, but no driver that works",
            "Install NVIDIA's driver by your distribution's packages and restart. In a container, "
            "pass the GPU in (docker run --gpus all).",
        )
    else:
        yield Finding(
            "GPU",
            "note",
            "there is none of NVIDIA, so models run on the CPU",
            "The demo model needs no GPU. The released model needs one with 24 GB or more.",
        )
    if machine.driver:
        yield Finding("driver", "ok", machine.driver)


def _libraries(machine: Machine, engine: dict[str, Any]) -> Iterator[Finding]:
    cuda, gpu = engine["torch_cuda"], engine["gpu"]
    version = f"{engine['torch']}, {f'CUDA {cuda}' if cuda else 'without CUDA'}"
    if machine.gpu is None or gpu is not None:
        yield Finding("torch", "ok", version)
    elif cuda is None:
        yield Finding(
            "torch",
            "missing",
            f"{version}, so it cannot use the GPU",
            "Install PyPI's build, which has CUDA: pip install --force-reinstall torch.",
        )
    else:
        yield Finding(
            "torch",
            "missing",
            f"{version}, but it cannot use the GPU",
            f"Update NVIDIA's driver to one that supports CUDA {cuda}, and see that "
            "CUDA_VISIBLE_DEVICES does not hide the GPU.",
        )
    if gpu is not None:
        free = f"{gb(gpu['free'])} free of {gb(gpu['total'])}, compute capability"
        yield Finding("GPU memory", "ok", f"{free} {gpu['capability']}")
        yield _needed(engine, "triton", "Without it a GPU runs plain operations, which are slower.")
        yield _needed(engine, "compiler", "Triton needs it: install gcc.")
    yield Finding("transformers", "ok", str(engine["transformers"]))


def _needed(engine: dict[str, Any], name: str, why: str) -> Finding:
    value = engine[name]
    return Finding(name, "ok", value) if value else Finding(name, "missing", "not found", why)


def _model(model: ServableModel) -> Finding:
    name = f"model {model.name}"
    if isinstance(model.report, str):
        return Finding(name, "missing", model.report)
    config = model.report.config
    formats = f"experts {config.quantize_experts}, linears {config.quantize_linears}"
    if not model.fits:
        return Finding(name, "note", model.report.verdict)
    text = f"profile {model.report.profile} ({formats}). {model.report.verdict}"
    remedy = f"{command_line(f'serve --model {model.name}')} downloads it."
    return Finding(name, "ok", text, remedy * (model.where == "on the hub"))


def _has_nvidia_card() -> bool:
    for device in _PCI.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith(_DISPLAY):
            return True
    return False


def _driver_version() -> str:
    try:
        match = re.search(r"\s(\d+\.\d[\d.]*)\s", _DRIVER.read_text())
    except OSError:
        return ""
    return match[1] if match else ""


def _engine_facts() -> dict[str, Any] | str:
    """Returns the facts, or the last line of why torch can't be imported."""
    command = [sys.executable, "-m", "engine.machine"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ENGINE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts
