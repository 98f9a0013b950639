"""The least time that a denoising step of the released model can take, by device: arithmetic.

The formulas are `engine/roofline.py`'s, the devices those of `configs/profiles/` and some more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.compare import Row
from engine.config import DeviceProfile, Format, Hardware, profile_names
from engine.dimensions import Dimensions, known_dimensions
from engine.roofline import step_cost

CONTEXT = 8192
TOKENS_A_STEP = (10, 15, 20)
RELEASED_MODEL = "google/diffusiongemma-26B-A4B-it"


@dataclass(frozen=True)
class Device:
    """Peak figures as the maker gives them, dense: bytes/s and floating-point operations/s."""

    bandwidth: float
    bf16: float
    fp8: float


# NVIDIA's data sheet.
_H200, _H200_FIGURES = "H200", Device(4.8e12, 989e12, 1979e12)


@dataclass(frozen=True)
class Form:
    """What the weights are in, and which peak their products have."""

    experts: Format
    linears: Format
    fp8_products: bool = False


FORMS = {
    "BF16": Form("none", "none"),
    "FP8": Form("fp8", "fp8", fp8_products=True),
    "4-bit experts": Form("int4", "none"),
}


def devices() -> dict[str, Device]:
    """The profiles' devices and the H200, which has none of its own."""
    found = {_H200: _H200_FIGURES}
    for profile in map(DeviceProfile.read, profile_names()):
        if profile.hardware is not None:
            found[profile.title] = _device(profile.hardware)
    return dict(sorted(found.items()))


def find_device(gpu_name: str) -> Device | None:
    """By the driver's name for it, if its figures are known."""
    if _H200 in gpu_name:  # which the H100's profile takes for one of its own
        return _H200_FIGURES
    for profile in map(DeviceProfile.read, profile_names()):
        if profile.hardware is not None and profile.hardware.is_of(gpu_name):
            return _device(profile.hardware)
    return None


def _device(hardware: Hardware) -> Device:
    return Device(
        hardware.bandwidth_gb_s * 1e9, hardware.bf16_tflops * 1e12, hardware.fp8_tflops * 1e12
    )


def released() -> Dimensions:
    """The released model's dimensions."""
    dimensions = known_dimensions(RELEASED_MODEL)
    assert dimensions is not None
    return dimensions


def rows() -> Iterator[Row]:
    for name, device in devices().items():
        for form, weights in FORMS.items():
            cost = step_cost(
                released(), experts=weights.experts, linears=weights.linears, context=CONTEXT
            )
            speed = {
                "bandwidth": device.bandwidth,
                "peak": device.fp8 if weights.fp8_products else device.bf16,
            }
            least_s = cost.seconds(**speed)
            memory_s = cost.memory_seconds(bandwidth=device.bandwidth)
            yield {
                "case": f"{name}, {form}",
                "step_ms": least_s * 1e3,
                "bound": "memory" if memory_s >= least_s else "compute",
                **{f"tokens_s_at_{n}": n / least_s for n in TOKENS_A_STEP},
                "compute_bound_from": cost.compute_bound_from(**speed),
            }
