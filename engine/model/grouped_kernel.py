"""Which grouped product the experts have here: chosen by the GPU, tried, and logged.

PyTorch's grouped_mm has a kernel of its own for bfloat16 on compute capability 9.x and 10.x. For
other GPUs and types it asks the device for the groups' sizes and makes a product of each: the host
waits in every layer, and a CUDA graph can't hold it. There Triton's kernel comes first.
"""

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.device import DeviceError, device_name
from engine.model.experts import Experts, Kernel, grouped_mm

logger = logging.getLogger(__name__)

# GPUs' generations with a grouped_mm for bfloat16 (_grouped_mm_cuda in PyTorch's GroupedBlas.cpp).
_FAST_GENERATIONS = (9, 10)
_ROWS = 70  # of the trial's longest group: more than a tile
_TOLERANCE = 0.02  # of the largest result; bfloat16 has 8 bits


def choose_grouped_kernel(experts: list[Experts]) -> None:
    """Give every layer's experts the first product that runs here and computes what it should.

    Raises DeviceError if none does.
    """
    weights = experts[0].gate_up
    kernels = _candidates(weights.device, weights.dtype)
    for kernel in kernels:
        try:
            if len(kernels) > 1:
                _try(kernel, experts[0].gate_up)
                _try(kernel, experts[0].down)
                logger.info("experts: %s's grouped product", kernel)
        except Exception:  # whatever a compiler, a driver or a missing package may raise
            logger.warning("%s's grouped product can't be used here", kernel, exc_info=True)
            continue
        for each in experts:
            each.kernel = kernel
        return
    raise DeviceError(f"no grouped product for the experts runs on {device_name(weights.device)}")


def _candidates(device: torch.device, dtype: torch.dtype) -> tuple[Kernel, ...]:
    """What may serve, the best first."""
    if device.type != "cuda":
        return ("torch",)
    generation, _ = torch.cuda.get_device_capability(device)
    if generation in _FAST_GENERATIONS and dtype == torch.bfloat16:
        return ("torch", "triton")
    return ("triton", "torch")


@torch.inference_mode()
def _try(kernel: Kernel, weights: Tensor) -> None:
    """Three rows of the first expert, many of the last one, none of those between them."""
    groups, _, inputs = weights.shape
    ends = torch.full((groups,), 3, dtype=torch.int32, device=weights.device)
    ends[-1] = 3 + _ROWS
    numbers = torch.arange((3 + _ROWS) * inputs, device=weights.device)
    rows = numbers.view(-1, inputs).sin().to(weights.dtype)
    found = grouped_mm(rows, weights, ends, kernel).float()
    expected = F.linear(rows, weights[-1]).float()
    if groups > 1:
        expected[:3] = F.linear(rows[:3], weights[0])
    error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not error <= _TOLERANCE * largest:
        raise ArithmeticError(f"off by {error} where the largest result is {largest}")
