"""Computes the least time that a denoising step of the released model can take on each device.

`engine/sizing/roofline.py` has the formulas. The devices are those of `configs/profiles/`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from bench.compare import Row
from engine.config import DeviceProfile, Formats, Hardware, profile_names
from engine.sizing.dimensions import RELEASED_MODEL, Dimensions, known_dimensions
from engine.sizing.roofline import StepCost, step_cost

CONTEXT = 8192
TOKENS_A_STEP = (10, 15, 20)
COLUMNS = [
    "step_ms",
    "bound",
    *(f"tokens_s_at_{n}" for n in TOKENS_A_STEP),
    "compute_bound_from",
]


@dataclass(frozen=True)
class PeakFigures:
    """The maker's peak figures for dense products: bytes/s and floating-point operations/s."""

    bandwidth: float
    bf16: float
    fp8: float


# Name: the weights' formats, and whether their products run in FP8, which has its own peak.
FORMATS = {
    "BF16": (Formats(), False),
    "FP8": (Formats("fp8", "fp8"), True),
    "4-bit experts": (Formats("int4"), False),
}


def devices() -> dict[str, PeakFigures]:
    """Returns the devices of the profiles by their titles."""
    figures = {}
    for profile in map(DeviceProfile.read, profile_names()):
        if profile.hardware is not None:
            figures[profile.title] = _device(profile.hardware)
    return dict(sorted(figures.items()))


def find_device(gpu_name: str) -> PeakFigures | None:
    """Returns the figures of a GPU by its name in the driver, or None if they are unknown."""
    for profile in map(DeviceProfile.read, profile_names()):
        if profile.hardware is not None and profile.hardware.is_of(gpu_name):
            return _device(profile.hardware)
    return None


def _device(hardware: Hardware) -> PeakFigures:
    return PeakFigures(
        hardware.bandwidth_gb_s * 1e9, hardware.bf16_tflops * 1e12, hardware.fp8_tflops * 1e12
    )


def released() -> Dimensions:
    """Returns the released model's dimensions."""
    dimensions = known_dimensions(RELEASED_MODEL)
    assert dimensions is not None
    return dimensions


def compute_bound_from(cost: StepCost, *, bandwidth: float, peak: float) -> int | None:
    """Returns the least number of canvases with which a step is bound by operations, not by bytes.

    It is None if a step is bound by bytes with any number of canvases.
    """
    spare = cost.canvas_flops / peak - cost.canvas_bytes / bandwidth
    return ceil(cost.fixed_bytes / bandwidth / spare) if spare > 0 else None


def rows() -> Iterator[Row]:
    for name, device in devices().items():
        for label, (formats, fp8_products) in FORMATS.items():
            cost = step_cost(released(), formats, context=CONTEXT)
            bandwidth, peak = device.bandwidth, device.fp8 if fp8_products else device.bf16
            least_s = cost.seconds(bandwidth=bandwidth, peak=peak)
            memory_s = cost.memory_seconds(bandwidth=bandwidth)
            yield {
                "case": f"{name}, {label}",
                "step_ms": least_s * 1e3,
                "bound": "memory" if memory_s >= least_s else "compute",
                **{f"tokens_s_at_{n}": n / least_s for n in TOKENS_A_STEP},
                "compute_bound_from": compute_bound_from(cost, bandwidth=bandwidth, peak=peak),
            }
