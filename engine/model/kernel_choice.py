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
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.device import DeviceError, device_name
from engine.model.attention import bidirectional_attention, causal_attention, causal_mask
from engine.model.diffusion_gemma import Attention, DiffusionGemma, Layer
from engine.model.experts import Experts
from engine.model.products import grouped_mm, quantized_product
from engine.sizing.dimensions import LayerShape
from engine.weights.quantization import Kernel, QuantizedWeight, StackedWeight, Weight, flattened

logger = logging.getLogger(__name__)

Work = Callable[[], object]
Clock = Callable[[Work], float]  # returns the milliseconds that some work takes

# GPU generations with a grouped_mm for bfloat16 (_grouped_mm_cuda in PyTorch's GroupedBlas.cpp).
_FAST_GENERATIONS = (9, 10)
_FEW = 3  # rows of a trial's first group
_ROWS = (5, 16, 22)  # average rows of a trial's groups: our kernel's tiles are 16, 32 and 64 rows
# The attention's trial: more queries than a tile has, and a multiple of a mask's alignment.
_QUERIES, _ENTRIES = 70, 144
_ROUTED_ROWS = (40, 1030)  # the routing's kernel has two forms, for few rows and for many
_CANVAS, _CONTEXT = 256, 8192  # queries of the timed attention, and the entries before them
_WARM_UP, _TIMED = 3, 9  # runs of a kernel before it is timed, and those of which the median counts
_TOLERANCE = 0.02  # relative to the largest result; bfloat16 has 8 bits


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
            _try_attention(heads, shape, device, dtype)
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
            _try_layer(layer, model.device, model.dtype)
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
            layer.router.proj = nn.Parameter(_in_full(layer.router.proj, model.dtype))


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
                    _try_product(kernel, weights)
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
    return all(kernels[key] == "triton" for key, part in distinct.items() if _is_experts(part))


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
            _try_quantized_product(weight, dtype)
        except Exception as error:  # a compiler, a driver or a missing package may raise anything
            failures.setdefault(_name(weight), error)
            continue
        with_both: tuple[Kernel, ...] = ("triton",) if _is_experts(weight) else ("triton", "torch")
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
    """Compare a grouped product with plain ones.

    The first expert has a few rows, the last one has all others, and those in between have none.
    Raises ArithmeticError if the results differ, or whatever the kernel raises.
    """
    groups, _, inputs = weights.shape
    for rows in _trial_rows(groups, inputs, weights.device, weights.dtype):
        actual = grouped_mm(rows, weights, _trial_ends(groups, rows), kernel)
        expected = F.linear(rows, weights[-1])
        if groups > 1:
            expected[:_FEW] = F.linear(rows[:_FEW], weights[0])
        _compare(actual, expected)


@torch.inference_mode()
def _try_quantized_product(weight: QuantizedWeight, dtype: torch.dtype) -> None:
    """Compare Triton's product with the plain one. Experts have rows as in `_try_product`.

    Raises ArithmeticError if the results differ, or whatever the kernel raises.
    """
    groups = weight.shape[0] if _is_experts(weight) else 1
    with_triton = dataclasses.replace(weight, kernel="triton")
    for rows in _trial_rows(groups, weight.shape[-1], weight.device, dtype):
        ends = _trial_ends(groups, rows) if _is_experts(weight) else None
        actual = quantized_product(rows, with_triton, ends)
        _compare(actual, quantized_product(rows, weight, ends))


def _product_of_canvas(kernel: Kernel, weights: Tensor) -> Tensor:
    """Returns a grouped product with as many rows as a canvas has on average for each expert."""
    groups, _, inputs = weights.shape
    rows = torch.ones(_ROWS[1] * groups, inputs, device=weights.device, dtype=weights.dtype)
    ends = torch.arange(1, groups + 1, device=weights.device, dtype=torch.int32) * _ROWS[1]
    return grouped_mm(rows, weights, ends, kernel)


def _linear_of_canvas(kernel: Kernel, weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Returns the product of a canvas with a quantised linear."""
    rows = torch.ones(_CANVAS, weight.shape[-1], device=weight.device, dtype=dtype)
    return quantized_product(rows, dataclasses.replace(weight, kernel=kernel), None)


def _timed_attention(
    heads: int, shape: LayerShape, device: torch.device, dtype: torch.dtype
) -> Callable[[Kernel], Tensor]:
    """Returns a function that runs a kernel's attention of a canvas behind 8,192 tokens."""
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.prefix_attention import prefix_attention

    stored = min(_CONTEXT, (shape.window or _CONTEXT + 1) - 1)
    entries = stored + _CANVAS
    keys = torch.ones(shape.kv_heads, entries, shape.head_size, device=device, dtype=dtype)
    queries = torch.ones(heads, _CANVAS, shape.head_size, device=device, dtype=dtype)
    span = torch.zeros(2, device=device, dtype=torch.int64)
    span[1] = entries
    seen = torch.ones(entries, device=device, dtype=torch.bool)

    def attend(kernel: Kernel) -> Tensor:
        if kernel == "triton":
            return prefix_attention(queries, keys, keys, span)
        return bidirectional_attention(queries, keys, keys, seen)

    return attend


def _trial_rows(
    groups: int, inputs: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Tensor]:
    # A linear has tiles of its own for a canvas.
    for average in _ROWS if groups > 1 else (*_ROWS, _CANVAS):
        count = _FEW + average * groups
        numbers = torch.arange(count * inputs, dtype=torch.int32, device=device)
        yield numbers.view(count, inputs).sin().to(dtype)


def _trial_ends(groups: int, rows: Tensor) -> Tensor:
    ends = torch.full((groups,), _FEW, dtype=torch.int32, device=rows.device)
    ends[-1] = rows.shape[0]
    return ends


@torch.inference_mode()
def _try_attention(heads: int, shape: LayerShape, device: torch.device, dtype: torch.dtype) -> None:
    """Compare Triton's attention with PyTorch's, for queries over a longer cache.

    It is tried without some entries at both ends, with all entries, and causal, each way for one
    segment, and for two segments together in one slot of several. Raises ArithmeticError if the
    results differ, or whatever the kernel raises.
    """
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.prefix_attention import prefix_attention

    sizes = (3 * shape.kv_heads, _ENTRIES, shape.head_size)
    numbers = torch.arange(math.prod(sizes), device=device).view(sizes)
    keys, values, others = numbers.sin().to(dtype).chunk(3)
    queries = others[:, :_QUERIES].repeat(heads // shape.kv_heads, 1, 1)
    span = torch.full((2,), 3, device=device)
    span[1] = _ENTRIES - 5
    whole = torch.zeros_like(span)
    whole[1] = _ENTRIES
    seen = torch.zeros(_ENTRIES, dtype=torch.bool, device=device)
    seen[3:-5] = True
    mask = causal_mask(_ENTRIES - _QUERIES, _QUERIES, shape.window, device)
    of_span = bidirectional_attention(queries, keys, values, seen)
    of_all = bidirectional_attention(queries, keys, values)
    of_causal = causal_attention(queries, keys, values, mask)
    causal: Any = {"causal": True, "window": shape.window}
    _compare(prefix_attention(queries, keys, values, span), of_span)
    _compare(prefix_attention(queries, keys, values), of_all)
    _compare(prefix_attention(queries, keys, values, **causal), of_causal)

    slots = torch.ones_like(span)  # both segments see the same cache, which is not the first one
    both = queries.repeat(1, 2, 1)
    keys, values = (torch.stack([torch.zeros_like(each), each]) for each in (keys, values))
    actual = prefix_attention(both, keys, values, torch.stack([span, whole]), slots=slots)
    _compare(actual, torch.cat([of_span, of_all], dim=1))
    spans = torch.stack([whole, whole])
    actual = prefix_attention(both, keys, values, spans, slots=slots, **causal)
    _compare(actual, of_causal.repeat(1, 2, 1))


@torch.inference_mode()
def _try_layer(layer: Layer, device: torch.device, dtype: torch.dtype) -> None:
    """Compare Triton's kernels for a layer of this kind with the same in PyTorch in float32.

    Each is compared on its own, because rounding decides between experts with nearly equal scores.
    Raises ArithmeticError if the results differ, or whatever a kernel raises.
    """
    size = layer.router.scale.shape[0]
    _try_write_heads(layer.attention, device, dtype)
    for rows in _ROUTED_ROWS:
        _try_route(layer, _waves(rows, size, device=device, dtype=dtype))
    _try_experts(layer, _waves(_ROUTED_ROWS[0], size, device=device, dtype=dtype))


def _try_write_heads(own: Attention, device: torch.device, dtype: torch.dtype) -> None:
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.write_heads import plain_write_heads, write_heads

    rows, size = 2 * _FEW, own.head_size
    angles = torch.arange(rows * size // 2, device=device).view(rows, -1).repeat(1, 2)
    inputs: Any = (
        _waves(rows, own.qkv.shape[0], device=device, dtype=dtype),
        own.q_norm.weight,
        own.k_norm.weight,
        (angles.cos().to(dtype), angles.sin().to(dtype)),
    )
    cache = torch.zeros(2, 2, own.kv_heads, rows, size, dtype=dtype, device=device)
    slots = torch.tensor([1, 0], device=device)  # the second canvas is one entry further behind
    options: Any = {"query_heads": own.query_heads, "eps": own.q_norm.eps}
    inputs = (*inputs, cache, slots, slots.flip(0))
    plain_inputs = _wide((*inputs[:4], cache.clone(), *inputs[5:]))
    _compare(write_heads(*inputs, **options), plain_write_heads(*plain_inputs, **options))
    _compare(cache, plain_inputs[4])


def _try_route(layer: Layer, x: Tensor) -> None:
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.route import plain_route, route

    router, eps = layer.router, layer.router_eps
    inputs: Any = (
        x,
        x.flip(0),
        layer.post_attention_norm.weight,
        layer.mlp_norm.weight,
        layer.experts_norm.weight,
        router.scale,
        _in_full(router.proj, x.dtype),
        torch.ones_like(router.per_expert_scale),
    )
    routed = route(*inputs, per_token=router.per_token, eps=eps)
    every = plain_route(*_wide(inputs), per_token=router.proj.shape[0], eps=eps)
    shares = torch.zeros_like(every.shares).scatter_(1, every.experts.long(), every.shares)
    shares = shares.gather(1, routed.experts.long())
    best = every.shares[:, : router.per_token]
    _compare(routed.shares, best / best.sum(1, keepdim=True))
    _compare(shares / shares.sum(1, keepdim=True), routed.shares)
    for actual, expected in zip(routed[:3], every[:3], strict=True):
        _compare(actual, expected)


def _try_experts(layer: Layer, x: Tensor) -> None:
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.combine import combine, plain_combine
    from engine.kernels.condition import condition, plain_condition
    from engine.kernels.dispatch import dispatch, plain_dispatch
    from engine.kernels.gated import gated, plain_gated

    experts, eps = layer.router.proj.shape[0], layer.router_eps
    rows, per_token = x.shape[0], layer.router.per_token
    choices = torch.arange(rows * per_token, dtype=torch.int32, device=x.device)
    choices = (7 * choices % experts).view(rows, per_token)
    sent, plain_sent = dispatch(x, choices, experts), plain_dispatch(x, choices, experts)
    for actual, expected in zip(sent, plain_sent, strict=True):
        _compare(actual, expected)

    products = x.repeat(1, 2), sent.rows.repeat(1, 2)
    inner = gated(*products)
    for actual, product in zip(inner, products, strict=True):
        _compare(actual, plain_gated(product.float()))

    shares = choices.float() / experts
    ends: Any = (
        *(x, *inner, sent.indices, shares),
        (
            layer.post_mlp_norm.weight,
            layer.post_experts_norm.weight,
            layer.post_feedforward_norm.weight,
            layer.attention_norm.weight,
        ),
        (layer.encoder_scalar, layer.decoder_scalar),
        _FEW,
        eps,
    )
    for actual, expected in zip(combine(*ends), plain_combine(*_wide(ends)), strict=True):
        _compare(actual, expected)

    begins: Any = (x, x.flip(0), layer.attention_norm.weight)
    scale = x.shape[1] ** 0.5
    for actual, expected in zip(
        condition(*begins, scale=scale, eps=eps),
        plain_condition(*_wide(begins), scale=scale, eps=eps),
        strict=True,
    ):
        _compare(actual, expected)


def _waves(rows: int, size: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.arange(rows * size, device=device).view(rows, size).sin().to(dtype)


def _wide(inputs: Any) -> Any:
    """Returns arguments with the numbers of all tensors of floats in 32 bits."""
    if isinstance(inputs, tuple):
        return tuple(map(_wide, inputs))
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return inputs.float()
    return inputs


def _in_full(weight: Weight, dtype: torch.dtype) -> Tensor:
    """Returns a weight in this dtype, dequantised if it is quantised."""
    if isinstance(weight, QuantizedWeight):
        return weight.dequantize(dtype)
    assert isinstance(weight, Tensor)
    return weight


def _compare(actual: Tensor, expected: Tensor) -> None:
    error = float((actual.float() - expected.float()).abs().max())
    largest = float(expected.abs().max())
    if not error <= _TOLERANCE * largest:
        raise ArithmeticError(f"off by {error} where the largest result is {largest}")
