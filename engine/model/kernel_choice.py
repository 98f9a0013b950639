"""Which kernels the model has here: chosen by the GPU, tried, and logged.

The experts' grouped product: PyTorch's has a kernel of its own for bfloat16 on compute capability
9.x and 10.x. For other GPUs and types it asks the device for the groups' sizes and makes a product
of each: the host waits in every layer, and a CUDA graph can't hold it. There Triton's comes first.

Attention in passes of fixed shapes: PyTorch's fastest kernels take no mask and no head size above
256. On a GPU Triton's comes first, which reads only what the cache holds.
"""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.device import DeviceError, device_name
from engine.dimensions import LayerShape
from engine.model.attention import bidirectional_attention
from engine.model.experts import Experts, Kernel, grouped_mm

logger = logging.getLogger(__name__)

# GPUs' generations with a grouped_mm for bfloat16 (_grouped_mm_cuda in PyTorch's GroupedBlas.cpp).
_FAST_GENERATIONS = (9, 10)
_ROWS = 70  # of the trial's longest group: more than a tile
_PLACES = 144  # of the trial's cache; a multiple of what masks are aligned to
_TOLERANCE = 0.02  # of the largest result; bfloat16 has 8 bits


def choose_grouped_kernel(experts: list[Experts]) -> None:
    """Give every layer's experts the first product that runs here and computes what it should.

    Quantised weights have the plain product for now. Raises DeviceError if none does.
    """
    weights, down = experts[0].gate_up, experts[0].down
    if not isinstance(weights, Tensor) or not isinstance(down, Tensor):
        return
    kernels = _candidates(weights.device, weights.dtype)
    for kernel in kernels:
        try:
            if len(kernels) > 1:
                _try_product(kernel, weights)
                _try_product(kernel, down)
                logger.info("experts: %s's grouped product", kernel)
        except Exception:  # whatever a compiler, a driver or a missing package may raise
            logger.warning("%s's grouped product can't be used here", kernel, exc_info=True)
            continue
        for each in experts:
            each.kernel = kernel
        return
    raise DeviceError(f"no grouped product for the experts runs on {device_name(weights.device)}")


def choose_attention_kernel(
    shapes: Iterable[LayerShape], heads: int, device: torch.device, dtype: torch.dtype
) -> Kernel:
    """Whose attention passes of fixed shapes have, in layers of these shapes: PyTorch's on a CPU.

    `heads` are the query heads.
    """
    if device.type != "cuda":
        return "torch"
    try:
        for shape in dict.fromkeys((each.kv_heads, each.head_size) for each in shapes):
            _try_attention(heads, *shape, device, dtype)
    except Exception:  # whatever a compiler, a driver or a missing package may raise
        logger.warning("triton's attention can't be used here, torch's is", exc_info=True)
        return "torch"
    logger.info("attention: triton's")
    return "triton"


def _candidates(device: torch.device, dtype: torch.dtype) -> tuple[Kernel, ...]:
    """What may serve, the best first."""
    if device.type != "cuda":
        return ("torch",)
    generation, _ = torch.cuda.get_device_capability(device)
    if generation in _FAST_GENERATIONS and dtype == torch.bfloat16:
        return ("torch", "triton")
    return ("triton", "torch")


@torch.inference_mode()
def _try_product(kernel: Kernel, weights: Tensor) -> None:
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
    _compare(found, expected)


@torch.inference_mode()
def _try_attention(
    heads: int, kv_heads: int, size: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Queries of a longer cache, of which some places at either end are not seen."""
    # Here: triton is there only where it is needed, and slow to import.
    from engine.kernels.prefix_attention import prefix_attention

    shape = (3 * kv_heads, _PLACES, size)
    numbers = torch.arange(3 * kv_heads * _PLACES * size, device=device).view(shape)
    keys, values, rest = numbers.sin().to(dtype).chunk(3)
    queries = rest[:, :_ROWS].repeat(heads // kv_heads, 1, 1)
    span = torch.full((2,), 3, device=device)
    span[1] = _PLACES - 5
    seen = torch.zeros(_PLACES, dtype=torch.bool, device=device)
    seen[3:-5] = True
    found = prefix_attention(queries, keys, values, span)
    _compare(found.float(), bidirectional_attention(queries, keys, values, seen).float())


def _compare(found: Tensor, expected: Tensor) -> None:
    error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not error <= _TOLERANCE * largest:
        raise ArithmeticError(f"off by {error} where the largest result is {largest}")
