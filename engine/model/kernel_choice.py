"""Chooses the model's kernels by the GPU: tries them, times them, and logs the choice.

Where both PyTorch's kernel and Triton's compute the right result and neither makes the host wait,
the GPU decides: both are timed on it with a canvas, and the faster one is taken.

The experts' grouped product: PyTorch has a dedicated kernel for bfloat16 on compute capability 9.x
and 10.x. For other GPUs and dtypes it reads the groups' sizes from the device and makes one product
for each group. In these cases the host would wait in every layer, and a CUDA graph could not hold
the product, so Triton's kernel is taken if it works.

Products with quantised weights: on a GPU Triton's kernel is tried with one weight of each layout
that the model has, because it does not support every group size. With experts PyTorch's would make
the host wait.

Attention: PyTorch's fastest kernels accept neither a mask nor a head size above 256. Triton's
kernel needs no mask and reads only what is seen.

The other parts of a layer (norms, rotation, routing, sums): by PyTorch's operations they are some
fifty launches a layer. On a GPU Triton's kernels are taken if they work, which are five.
"""

import dataclasses
import logging
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.device import DeviceError, device_name
from engine.model.attention import bidirectional_attention
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.experts import Experts
from engine.model.kernel_trials import (
    CANVAS,
    in_full,
    is_experts,
    try_attention,
    try_layer,
    try_product,
    try_quantized_product,
)
from engine.model.products import grouped_mm, quantized_product
from engine.sizing.dimensions import LayerShape
from engine.weights.quantization import Kernel, QuantizedWeight, StackedWeight, Weight, flattened

logger = logging.getLogger(__name__)

Work = Callable[[], object]
Clock = Callable[[Work], float]  # returns the milliseconds that some work takes

# GPU generations with a grouped_mm for bfloat16 (_grouped_mm_cuda in PyTorch's GroupedBlas.cpp).
_FAST_GENERATIONS = (9, 10)
_EXPERT_ROWS = 16  # of a canvas, on average, in the timed product of experts
_CONTEXT = 8192  # entries before the canvas of the timed attention
_WARM_UP, _TIMED = 3, 9  # runs of a kernel before it is timed, and those of which the median counts


def choose_product_kernels(model: nn.Module, dtype: torch.dtype) -> bool:
    """Set each product's kernel to the first one that runs here and computes the right result.

    `dtype` is the activations'. Returns whether no product makes the host wait for the device,
    which CUDA graphs require. Raises DeviceError if no kernel works for experts that are not
    quantised.
    """
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    dense, quantized = _choose_for_dense(experts), _choose_for_quantized(model, dtype)
    return dense and quantized


def choose_attention_kernel(
    shapes: Iterable[LayerShape], heads: int, device: torch.device, dtype: torch.dtype
) -> Kernel:
    """Returns the attention kernel for layers of these shapes, with `heads` query heads.

    On a GPU on which Triton's kernel works for all of the shapes, it is the one that takes less
    time for all of them together, and else PyTorch's.
    """
    if device.type != "cuda":
        return "torch"
    distinct = dict.fromkeys(shapes)
    try:
        for shape in distinct:
            try_attention(heads, shape, device, dtype)
    except Exception:  # a compiler, a driver or a missing package may raise anything
        logger.warning(
            "triton's attention can't be used here, torch's is used instead", exc_info=True
        )
        return "torch"
    works = [_timed_attention(heads, shape, device, dtype) for shape in distinct]
    candidates: dict[Kernel, Work] = {
        "triton": lambda: [work("triton") for work in works],
        "torch": lambda: [work("torch") for work in works],
    }
    kernel, times = _fastest(candidates, _clock(device))
    logger.info("attention: %s's%s", kernel, times)
    return kernel


def choose_layer_kernel(model: DiffusionGemma) -> None:
    """Set the kernel of the layers' parts other than attention and the products.

    Triton's kernels are chosen on a GPU if all of them work for all layers, else PyTorch's. The
    router's product is one of these parts, so a quantised router is dequantised for them.
    """
    if model.device.type != "cuda":
        return
    layers = model.each_layer()
    kinds = dict(zip(model.dimensions.layers, layers, strict=True))
    try:
        for layer in kinds.values():
            try_layer(layer, model.device, model.dtype)
    except Exception:  # a compiler, a driver or a missing package may raise anything
        logger.warning(
            "triton's norms, routing and sums can't be used here, torch's are used instead",
            exc_info=True,
        )
        return
    logger.info("norms, routing and sums: triton's")
    for layer in layers:
        layer.kernel = "triton"
        if isinstance(layer.router.proj, QuantizedWeight):
            layer.router.proj = nn.Parameter(in_full(layer.router.proj, model.dtype))


def _choose_for_dense(experts: list[Experts]) -> bool:
    """Choose one kernel for all dense experts. Returns whether it never makes the host wait."""
    parts = flattened([weight for each in experts for weight in (each.gate_up, each.down)])
    distinct = {part.shape: part for part in parts if isinstance(part, Tensor)}
    if not distinct:
        return True
    first = next(iter(distinct.values()))
    kernels = _candidates(first.device, first.dtype)
    working: list[Kernel] = []
    for kernel in kernels:
        if working and kernel == "torch":
            break  # it is not the first one where it makes the host wait
        try:
            if len(kernels) > 1:
                for weights in distinct.values():
                    try_product(kernel, weights)
        except Exception:  # a compiler, a driver or a missing package may raise anything
            logger.warning("%s's grouped product can't be used here", kernel, exc_info=True)
            continue
        working.append(kernel)
    if not working:
        raise DeviceError(f"no grouped product for the experts runs on {device_name(first.device)}")
    largest = max(distinct.values(), key=torch.numel)
    chosen, times = _fastest(
        {kernel: partial(_product_of_canvas, kernel, largest) for kernel in working},
        _clock(first.device),
    )
    if len(kernels) > 1:
        logger.info("experts: %s's grouped product%s", chosen, times)
    for each in experts:
        each.kernel = chosen
    return chosen in ("triton", kernels[0])


def _choose_for_quantized(model: nn.Module, dtype: torch.dtype) -> bool:
    """Choose a kernel for each layout of quantised weights.

    Returns whether none of those chosen for experts makes the host wait.
    """
    held: list[tuple[nn.Module, str, QuantizedWeight | StackedWeight]] = [
        (module, name, whole)
        for module in model.modules()
        for name, whole in vars(module).items()
        if isinstance(whole, QuantizedWeight | StackedWeight)
        and name != "embedding"  # the vocabulary tail makes its products
    ]
    parts = flattened([whole for _, _, whole in held])
    distinct = {_key(part): part for part in parts if isinstance(part, QuantizedWeight)}
    kernels = _kernels_of(distinct, dtype)
    for module, name, whole in held:
        setattr(module, name, _with_kernels(whole, kernels))
    return all(kernels[key] == "triton" for key, part in distinct.items() if is_experts(part))


def _kernels_of(
    distinct: Mapping[Hashable, QuantizedWeight], dtype: torch.dtype
) -> dict[Hashable, Kernel]:
    """Returns the kernel of each weight: Triton's if the device has it and it works, or PyTorch's.

    PyTorch's is also taken for a linear if it is faster. Logs the choice.
    """
    kernels: dict[Hashable, Kernel] = dict.fromkeys(distinct, "torch")
    failures: dict[str, Exception] = {}
    for key, weight in distinct.items():
        if "triton" not in _candidates(weight.device, dtype):
            continue
        try:
            try_quantized_product(weight, dtype)
        except Exception as error:  # a compiler, a driver or a missing package may raise anything
            failures.setdefault(_name(weight), error)
            continue
        with_both: tuple[Kernel, ...] = ("triton",) if is_experts(weight) else ("triton", "torch")
        kernels[key], times = _fastest(
            {kernel: partial(_linear_of_canvas, kernel, weight, dtype) for kernel in with_both},
            _clock(weight.device),
        )
        if kernels[key] == "torch":
            logger.info("%s %s: torch's product%s", _name(weight), tuple(weight.shape), times)
    served = {_name(weight) for key, weight in distinct.items() if kernels[key] == "triton"}
    if served:
        logger.info("%s: triton's product", ", ".join(sorted(served)))
    for name, reason in failures.items():
        logger.warning(
            "%s: triton's product can't be used here; with torch's, each weight is held in full "
            "while it is used%s",
            name,
            ", and the host waits in each layer" if "experts" in name else "",
            exc_info=reason,
        )
    return kernels


def _clock(device: torch.device) -> Clock | None:
    """Returns the clock with which kernels are compared, or None for a CPU."""
    return device_ms if device.type == "cuda" else None


def device_ms(work: Work) -> float:
    """Returns the milliseconds that the GPU takes for some work, the median of several runs."""
    for _ in range(_WARM_UP):
        work()

    def event() -> Any:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's

    pairs = [(event(), event()) for _ in range(_TIMED)]
    for begin, end in pairs:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(begin.elapsed_time(end) for begin, end in pairs))


def _fastest(candidates: Mapping[Kernel, Work], clock: Clock | None) -> tuple[Kernel, str]:
    """Returns the kernel whose work takes the least time, and a text with the times.

    It is the first one, and the text is empty, if there is no clock or no other kernel.
    """
    first = next(iter(candidates))
    if clock is None or len(candidates) == 1:
        return first, ""
    times: dict[Kernel, float] = {}
    for kernel, work in candidates.items():
        try:
            with torch.inference_mode():
                times[kernel] = clock(work)
        except RuntimeError:  # it works, but not with a canvas, for example for lack of memory
            logger.warning("%s's kernel can't be timed here", kernel, exc_info=True)
    if not times:
        return first, ""
    text = ", ".join(f"{kernel} {ms:.3f} ms" for kernel, ms in times.items())
    return min(times, key=lambda kernel: times[kernel]), f" ({text})"


def _candidates(device: torch.device, dtype: torch.dtype) -> tuple[Kernel, ...]:
    """Returns the kernels to try, in the order of preference for dense experts."""
    if device.type != "cuda":
        return ("torch",)
    generation, _ = torch.cuda.get_device_capability(device)
    if generation in _FAST_GENERATIONS and dtype == torch.bfloat16:
        return ("torch", "triton")
    return ("triton", "torch")


def _key(weight: QuantizedWeight) -> Hashable:
    """Returns a key that is equal for weights for which a kernel works in the same way."""
    return weight.shape, *weight.layout


def _name(weight: QuantizedWeight) -> str:
    groups = f" in groups of {weight.group_size}" if weight.scales.shape[-1] > 1 else ""
    return f"{weight.scheme} {'experts' if is_experts(weight) else 'linears'}{groups}"


def _with_kernels(weight: Weight, kernels: Mapping[Hashable, Kernel]) -> Weight:
    match weight:
        case StackedWeight():
            parts = flattened([_with_kernels(part, kernels) for part in weight.parts])
            return StackedWeight(tuple(parts))
        case QuantizedWeight():
            return dataclasses.replace(weight, kernel=kernels[_key(weight)])
        case _:
            return weight


def _product_of_canvas(kernel: Kernel, weights: Tensor) -> Tensor:
    """Returns a grouped product with as many rows as a canvas has on average for each expert."""
    groups, _, inputs = weights.shape
    rows = torch.ones(_EXPERT_ROWS * groups, inputs, device=weights.device, dtype=weights.dtype)
    ends = torch.arange(1, groups + 1, device=weights.device, dtype=torch.int32) * _EXPERT_ROWS
    return grouped_mm(rows, weights, ends, kernel)


def _linear_of_canvas(kernel: Kernel, weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Returns the product of a canvas with a quantised linear."""
    rows = torch.ones(CANVAS, weight.shape[-1], device=weight.device, dtype=dtype)
    return quantized_product(rows, dataclasses.replace(weight, kernel=kernel), None)


def _timed_attention(
    heads: int, shape: LayerShape, device: torch.device, dtype: torch.dtype
) -> Callable[[Kernel], Tensor]:
    """Returns a function that runs a kernel's attention of a canvas behind 8,192 tokens."""
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.prefix_attention import prefix_attention

    stored = min(_CONTEXT, (shape.window or _CONTEXT + 1) - 1)
    entries = stored + CANVAS
    keys = torch.ones(shape.kv_heads, entries, shape.head_size, device=device, dtype=dtype)
    queries = torch.ones(heads, CANVAS, shape.head_size, device=device, dtype=dtype)
    span = torch.zeros(2, device=device, dtype=torch.int64)
    span[1] = entries
    seen = torch.ones(entries, device=device, dtype=torch.bool)

    def attend(kernel: Kernel) -> Tensor:
        if kernel == "triton":
            return prefix_attention(queries, keys, keys, span)
        return bidirectional_attention(queries, keys, keys, seen)

    return attend
