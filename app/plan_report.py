"""`easel plan`: the memory that a model needs on a device, what would fit, and its top speed.

It reads the model's `config.json`, or for the released model the dimensions that come with Easel.
The weights of a quantised model have the sizes of its files, which the hub tells for a model that
is not on this machine. Of a GGUF file it reads the header. It never loads or downloads weights, and
it needs no GPU.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.settings import Settings
from engine.config import DeviceProfile, EngineConfig, Hardware, profile_names
from engine.sizing.dimensions import (
    Dimensions,
    DimensionsError,
    known_dimensions,
    read_dimensions,
)
from engine.sizing.gguf import with_gguf
from engine.sizing.gguf_header import GgufError
from engine.sizing.gpu import Gpu, first_gpu
from engine.sizing.memory import available_ram_bytes
from engine.sizing.model_files import ModelFiles, ModelFilesError
from engine.sizing.plan import (
    Plan,
    differences,
    gb,
    largest_context,
    make_plan,
    most_canvases,
    nearest,
    refusal,
)
from engine.sizing.profiles import (
    apply_profile,
    choose_profile,
    hardware_of,
    usable_bytes,
)
from engine.sizing.roofline import device_step_s, step_cost
from engine.sizing.weight_files import with_files
from engine.sizing.weights import part_format

TOKENS_A_STEP = 15  # tokens of the answer that a step yields, for the estimate of the speed
SEEN_TOKENS = 8192  # the context that a step reads, for the estimate of the speed
_SETTINGS = (
    "quantize_experts",
    "quantize_linears",
    "quantize_rest",
    "max_context",
    "prefill_chunk",
    "max_active",
    "speculate",
    "prefix_cache_mib",
)


class PlanError(ValueError):
    """The plan can't be made: the model can't be read, or the device is unknown."""


@dataclass(frozen=True)
class TargetDevice:
    """The device that the model would run on, with the memory that the model may use."""

    name: str
    gpu: Gpu | None  # None for the CPU
    memory_bytes: int
    hardware: Hardware | None  # the maker's figures, if they are known


@dataclass(frozen=True)
class Report:
    """The result of `easel plan`."""

    device: TargetDevice
    profile: str
    config: EngineConfig
    plan: Plan
    largest_context: int
    most_canvases: int
    nearest: EngineConfig | None
    step_s: float | None

    @property
    def fits(self) -> bool:
        return self.plan.total <= self.device.memory_bytes

    @property
    def verdict(self) -> str:
        if not self.fits:
            memory, name = self.device.memory_bytes, self.device.name
            return refusal(self.plan, self.config, self.nearest, memory, name)
        return (
            f"It fits: {gb(self.plan.total)} of {gb(self.device.memory_bytes)}. With all else "
            f"unchanged, a context of up to {self.largest_context} tokens fits, or up to "
            f"{self.most_canvases} canvas{'' if self.most_canvases == 1 else 'es'}."
        )


def device_names() -> list[str]:
    """Returns the values that the option `--device` allows."""
    named = [name for name in profile_names() if DeviceProfile.read(name).hardware is not None]
    return ["auto", "cpu", *named]


def make_report(settings: Settings, device_name: str) -> Report:
    """Returns the report for one of `device_names()`. auto is this machine's GPU or CPU.

    Raises PlanError.
    """
    on_cpu = device_name == "auto" and settings.device == "cpu"
    device = _device("cpu" if on_cpu else device_name)
    dimensions = _dimensions(settings.model_path, settings.revision, settings.gguf)
    explicit = settings.engine_config()
    profile = choose_profile(explicit, device.gpu)
    config = apply_profile(explicit, profile, quantized=dimensions.quantized)
    cuda, memory = device.gpu is not None, device.memory_bytes
    plan = make_plan(dimensions, config, cuda=cuda)
    step_s = None
    if device.hardware is not None and not dimensions.quantized:
        cost = step_cost(dimensions, config.formats, context=SEEN_TOKENS)
        step_s = device_step_s(cost, device.hardware)
    return Report(
        device,
        profile,
        config,
        plan,
        largest_context(dimensions, config, memory, cuda=cuda),
        most_canvases(dimensions, config, memory, cuda=cuda),
        None if plan.total <= memory else nearest(dimensions, config, memory, cuda=cuda),
        step_s,
    )


def report_json(report: Report) -> dict[str, Any]:
    """Returns the report as JSON. Sizes are in bytes unless the name has another unit."""
    plan = report.plan
    fields: dict[str, Any] = {
        "model": report.config.model,
        "device": report.device.name,
        "profile": report.profile,
        "settings": {name: getattr(report.config, name) for name in _SETTINGS},
        "memory": report.device.memory_bytes,
        **asdict(plan),
        "kv": plan.kv,
        "total": plan.total,
        "fits": report.fits,
        "largest_context_tokens": report.largest_context,
        "most_canvases": report.most_canvases,
        "nearest": None if report.nearest is None else differences(report.config, report.nearest),
        "message": report.verdict,
    }
    if report.step_s is not None:
        fields["roofline_step_s"] = report.step_s
        fields["roofline_tokens_per_s"] = TOKENS_A_STEP / report.step_s
    return fields


def print_report(report: Report, console: Console) -> None:
    """Print a table, the profile's settings, the estimated speed and the verdict."""
    plan, config = report.plan, report.config
    table = Table(title=f"{config.model} on {report.device.name}", title_justify="left")
    table.add_column("part")
    table.add_column("memory", justify="right")
    table.add_column("", style="dim")
    for part, size in plan.weights.items():
        form = part_format(part, config.formats)
        table.add_row(f"weights: {part}", gb(size), "" if form == "none" else form)
    table.add_section()
    table.add_row(
        "KV cache",
        gb(plan.kv),
        f"{plan.canvases} x {gb(plan.kv_slot)} for {plan.context_tokens} tokens, "
        f"{plan.kv_token} bytes for each further token",
    )
    table.add_row("activations", gb(plan.activations), "upper estimate")
    table.add_row("CUDA graphs", gb(plan.graphs), "upper estimate")
    table.add_row("libraries", gb(plan.libraries), "upper estimate")
    table.add_row("kept prefixes", gb(plan.prefix_cache), "the configured budget")
    table.add_section()
    table.add_row("total", gb(plan.total), f"of {gb(report.device.memory_bytes)}")
    console.print(table)
    settings = ", ".join(f"{name} {getattr(config, name)}" for name in _SETTINGS).lower()
    console.print(f"profile {report.profile}: {settings}")
    if report.step_s is not None:
        console.print(
            f"roofline (computed, not measured): {report.step_s * 1e3:.3g} ms a step with "
            f"{SEEN_TOKENS} tokens of context, {TOKENS_A_STEP / report.step_s:.0f} tokens/s at "
            f"{TOKENS_A_STEP} tokens a step"
        )
    console.print(report.verdict)


def _device(name: str) -> TargetDevice:
    if name not in device_names():
        raise PlanError(f"device {name!r} is unknown; allowed: {', '.join(device_names())}")
    if name not in ("auto", "cpu"):
        hardware = DeviceProfile.read(name).hardware
        assert hardware is not None
        gpu = Gpu(hardware.gpu_names[0], round(hardware.memory_gib * 2**30))
        return TargetDevice(name, gpu, hardware.usable_bytes, hardware)
    gpu_here = first_gpu() if name == "auto" else None
    if gpu_here is None:
        return TargetDevice("this machine's CPU", None, available_ram_bytes(), None)
    return TargetDevice(gpu_here.name, gpu_here, usable_bytes(gpu_here), hardware_of(gpu_here))


def _dimensions(model: str, revision: str, gguf: str) -> Dimensions:
    """Returns the dimensions of a model whose size is known. Raises PlanError."""
    try:
        known = None if revision or Path(model).expanduser().is_dir() else known_dimensions(model)
        if known is not None:
            return _gguf_dimensions(gguf, known) if gguf else known
        files = ModelFiles(model, revision)
        files.refuse_adapter()
        dimensions = read_dimensions(files.file("config.json"))
        if gguf:
            return _gguf_dimensions(gguf, dimensions)
        dimensions = with_files(dimensions, files)
    except (ModelFilesError, DimensionsError) as error:
        raise PlanError(str(error)) from error
    if not dimensions.sized:
        raise PlanError(
            f"model {model!r} is quantised. Only its files say how large it is, and the hub can't "
            "be asked for their sizes now."
        )
    return dimensions


def _gguf_dimensions(gguf: str, dimensions: Dimensions) -> Dimensions:
    try:
        with_file = with_gguf(dimensions, gguf)
    except (GgufError, OSError) as error:
        raise PlanError(f"gguf {gguf!r}: {error}") from error
    if not with_file.sized:
        raise PlanError(
            f"gguf {gguf!r} is not a file on this machine, and the hub can't be asked for it now. "
            "Only the file says how large its weights are, so download it first."
        )
    return with_file
