"""Which kernels the model has here: chosen by the GPU, tried, and logged.

The experts' grouped product: PyTorch's has a kernel of its own for bfloat16 on compute capability
9.x and 10.x. For other GPUs and types it asks the device for the groups' sizes and makes a product
of each: the host waits in every layer, and a CUDA graph can't hold it. There Triton's comes first.

Products with quantised weights: on a GPU Triton's comes first. It does not take every size of
group, so that it is tried with a weight of each layout that the model has.

Attention: PyTorch's fastest kernels take no mask and no head size above 256. On a GPU Triton's
comes first, which needs no mask and reads only what is seen.
"""

import dataclasses
import logging
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.device import DeviceError, device_name
from engine.model.attention import bidirectional_attention, causal_attention, causal_mask
from engine.model.experts import Experts
from engine.model.products import grouped_mm, quantized_product
from engine.sizing.dimensions import LayerShape
from engine.weights.quantization import Kernel, QuantizedWeight, StackedWeight, Weight, flattened

logger = logging.getLogger(__name__)

# GPUs' generations with a grouped_mm for bfloat16 (_grouped_mm_cuda in PyTorch's GroupedBlas.cpp).
_FAST_GENERATIONS = (9, 10)
_FEW = 3  # rows of a trial's first group
_ROWS = (5, 16, 22)  # a group's on average, for which ours has tiles of 16, 32 and 64 rows
_QUERIES, _PLACES = 70, 144  # of attention's trial: more than a tile; what masks are aligned to
_TOLERANCE = 0.02  # of the largest result; bfloat16 has 8 bits


def choose_product_kernels(model: nn.Module, dtype: torch.dtype) -> bool:
    """Give every product the first kernel that runs here and computes what it should.

    Returns whether the host never waits for the device in one, which a CUDA graph demands. `dtype`
    is the activations'. Raises DeviceError if no kernel serves experts that are not quantised.
    """
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    dense, quantized = _choose_for_dense(experts), _choose_for_quantized(model, dtype)
    return dense and quantized


def choose_attention_kernel(
    shapes: Iterable[LayerShape], heads: int, device: torch.device, dtype: torch.dtype
) -> Kernel:
    """Whose attention layers of these shapes have: on a CPU PyTorch's. `heads` are the queries'."""
    if device.type != "cuda":
        return "torch"
    try:
        for shape in dict.fromkeys(shapes):
            _try_attention(heads, shape, device, dtype)
    except Exception:  # whatever a compiler, a driver or a missing package may raise
        logger.warning("triton's attention can't be used here, torch's is", exc_info=True)
        return "torch"
    logger.info("attention: triton's")
    return "triton"


def _choose_for_dense(experts: list[Experts]) -> bool:
    """One kernel for all that is not quantised; whether the host never waits in it."""
    parts = flattened([weight for each in experts for weight in (each.gate_up, each.down)])
    distinct = {part.shape: part for part in parts if isinstance(part, Tensor)}
    if not distinct:
        return True
    first = next(iter(distinct.values()))
    kernels = _candidates(first.device, first.dtype)
    for kernel in kernels:
        try:
            if len(kernels) > 1:
                for weights in distinct.values():
                    _try_product(kernel, weights)
                logger.info("experts: %s's grouped product", kernel)
        except Exception:  # whatever a compiler, a driver or a missing package may raise
            logger.warning("%s's grouped product can't be used here", kernel, exc_info=True)
            continue
        for each in experts:
            each.kernel = kernel
        return kernel in ("triton", kernels[0])
    raise DeviceError(f"no grouped product for the experts runs on {device_name(first.device)}")


def _choose_for_quantized(model: nn.Module, dtype: torch.dtype) -> bool:
    """A kernel for each layout; whether the host never waits in any of them."""
    held: list[tuple[nn.Module, str, QuantizedWeight | StackedWeight]] = [
        (module, name, whole)
        for module in model.modules()
        for name, whole in vars(module).items()
        if isinstance(whole, QuantizedWeight | StackedWeight)
        and name != "embedding"  # whose products are the vocabulary tail's
    ]
    parts = flattened([whole for _, _, whole in held])
    distinct = {_key(part): part for part in parts if isinstance(part, QuantizedWeight)}
    kernels = _kernels_of(distinct, dtype)
    for module, name, whole in held:
        setattr(module, name, _with_kernels(whole, kernels))
    return all(kernels[key] == "triton" for key, part in distinct.items() if _is_experts(part))


def _kernels_of(
    distinct: Mapping[Hashable, QuantizedWeight], dtype: torch.dtype
) -> dict[Hashable, Kernel]:
    """Triton's for those of these weights with which it may be and works."""
    kernels: dict[Hashable, Kernel] = dict.fromkeys(distinct, "torch")
    failures: dict[str, Exception] = {}
    for key, weight in distinct.items():
        if "triton" not in _candidates(weight.device, dtype):
            continue
        try:
            _try_quantized_product(weight, dtype)
            kernels[key] = "triton"
        except Exception as error:  # whatever a compiler, a driver or a missing package may raise
            failures.setdefault(_name(weight), error)
    served = {_name(weight) for key, weight in distinct.items() if kernels[key] == "triton"}
    if served:
        logger.info("%s: triton's product", ", ".join(sorted(served)))
    for name, reason in failures.items():
        logger.warning(
            "%s: triton's product can't be used here; with torch's each weight is held in full "
            "while it is used%s",
            name,
            ", and the host waits in each layer" if "experts" in name else "",
            exc_info=reason,
        )
    return kernels


def _candidates(device: torch.device, dtype: torch.dtype) -> tuple[Kernel, ...]:
    """What may serve, the best first if experts are not quantised."""
    if device.type != "cuda":
        return ("torch",)
    generation, _ = torch.cuda.get_device_capability(device)
    if generation in _FAST_GENERATIONS and dtype == torch.bfloat16:
        return ("torch", "triton")
    return ("triton", "torch")


def _key(weight: QuantizedWeight) -> Hashable:
    """Equal for weights that a kernel can't tell apart."""
    return weight.shape, *weight.layout


def _is_experts(weight: QuantizedWeight) -> bool:
    return weight.codes.ndim == 3


def _name(weight: QuantizedWeight) -> str:
    groups = f" in groups of {weight.group_size}" if weight.scales.shape[-1] > 1 else ""
    return f"{weight.scheme} {'experts' if _is_experts(weight) else 'linears'}{groups}"


def _with_kernels(weight: Weight, kernels: Mapping[Hashable, Kernel]) -> Weight:
    match weight:
        case StackedWeight():
            parts = flattened([_with_kernels(part, kernels) for part in weight.parts])
            return StackedWeight(tuple(parts))
        case QuantizedWeight():
            return dataclasses.replace(weight, kernel=kernels[_key(weight)])
        case _:
            return weight


@torch.inference_mode()
def _try_product(kernel: Kernel, weights: Tensor) -> None:
    """A few rows of the first expert, the others of the last one, none of those between them."""
    groups, _, inputs = weights.shape
    for rows in _trial_rows(groups, inputs, weights.device, weights.dtype):
        found = grouped_mm(rows, weights, _trial_ends(groups, rows), kernel)
        expected = F.linear(rows, weights[-1])
        if groups > 1:
            expected[:_FEW] = F.linear(rows[:_FEW], weights[0])
        _compare(found, expected)


@torch.inference_mode()
def _try_quantized_product(weight: QuantizedWeight, dtype: torch.dtype) -> None:
    """With experts in the same way."""
    groups = weight.shape[0] if _is_experts(weight) else 1
    triton_s = dataclasses.replace(weight, kernel="triton")
    for rows in _trial_rows(groups, weight.shape[-1], weight.device, dtype):
        ends = _trial_ends(groups, rows) if _is_experts(weight) else None
        found = quantized_product(rows, triton_s, ends)
        _compare(found, quantized_product(rows, weight, ends))


def _trial_rows(
    groups: int, inputs: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Tensor]:
    for average in _ROWS:
        count = _FEW + average * groups
        numbers = torch.arange(count * inputs, dtype=torch.int32, device=device)
        yield numbers.view(count, inputs).sin().to(dtype)


def _trial_ends(groups: int, rows: Tensor) -> Tensor:
    ends = torch.full((groups,), _FEW, dtype=torch.int32, device=rows.device)
    ends[-1] = rows.shape[0]
    return ends


@torch.inference_mode()
def _try_attention(heads: int, shape: LayerShape, device: torch.device, dtype: torch.dtype) -> None:
    """Queries of a longer cache: without some places at either end, whole, and causal."""
    # Here: triton is there only where it is needed, and slow to import.
    from engine.kernels.prefix_attention import prefix_attention

    sizes = (3 * shape.kv_heads, _PLACES, shape.head_size)
    numbers = torch.arange(math.prod(sizes), device=device).view(sizes)
    keys, values, rest = numbers.sin().to(dtype).chunk(3)
    queries = rest[:, :_QUERIES].repeat(heads // shape.kv_heads, 1, 1)
    span = torch.full((2,), 3, device=device)
    span[1] = _PLACES - 5
    seen = torch.zeros(_PLACES, dtype=torch.bool, device=device)
    seen[3:-5] = True
    found = prefix_attention(queries, keys, values, span)
    _compare(found, bidirectional_attention(queries, keys, values, seen))
    found = prefix_attention(queries, keys, values)
    _compare(found, bidirectional_attention(queries, keys, values))
    found = prefix_attention(queries, keys, values, causal=True, window=shape.window)
    mask = causal_mask(_PLACES - _QUERIES, _QUERIES, shape.window, device)
    _compare(found, causal_attention(queries, keys, values, mask))


def _compare(found: Tensor, expected: Tensor) -> None:
    error = float((found.float() - expected.float()).abs().max())
    largest = float(expected.abs().max())
    if not error <= _TOLERANCE * largest:
        raise ArithmeticError(f"off by {error} where the largest result is {largest}")
