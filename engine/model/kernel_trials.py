"""Trials of the model's kernels on the GPU: each is run and compared with PyTorch's.

A trial raises ArithmeticError if the results differ, or whatever the kernel raises: a compiler, a
driver or a missing package may raise anything. `engine/model/kernel_choice.py` decides what follows
from it. Nothing is timed here.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.model.attention import bidirectional_attention, causal_attention, causal_mask
from engine.model.diffusion_gemma import Attention, Layer
from engine.model.products import grouped_mm, quantized_product
from engine.sizing.dimensions import LayerShape
from engine.weights.quantization import Kernel, QuantizedWeight, Weight

CANVAS = 256  # rows of a canvas of the released model
_FEW = 3  # rows of a trial's first group
_ROWS = (5, 16, 22)  # average rows of a trial's groups: our kernel's tiles are 16, 32 and 64 rows
# The attention's trial: more queries than a tile has, and a multiple of a mask's alignment.
_QUERIES, _ENTRIES = 70, 144
_ROUTED_ROWS = (40, 1030)  # the routing's kernel has two forms, for few rows and for many
_TOLERANCE = 0.02  # relative to the largest result; bfloat16 has 8 bits


@torch.inference_mode()
def try_product(kernel: Kernel, weights: Tensor) -> None:
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
def try_quantized_product(weight: QuantizedWeight, dtype: torch.dtype) -> None:
    """Compare Triton's product with the plain one. Experts have rows as in `try_product`.

    Raises ArithmeticError if the results differ, or whatever the kernel raises.
    """
    groups = weight.shape[0] if is_experts(weight) else 1
    with_triton = dataclasses.replace(weight, kernel="triton")
    for rows in _trial_rows(groups, weight.shape[-1], weight.device, dtype):
        ends = _trial_ends(groups, rows) if is_experts(weight) else None
        actual = quantized_product(rows, with_triton, ends)
        _compare(actual, quantized_product(rows, weight, ends))


@torch.inference_mode()
def try_attention(heads: int, shape: LayerShape, device: torch.device, dtype: torch.dtype) -> None:
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
def try_layer(layer: Layer, device: torch.device, dtype: torch.dtype) -> None:
    """Compare Triton's kernels for a layer of this kind with the same in PyTorch in float32.

    Each is compared on its own, because rounding decides between experts with nearly equal scores.
    Raises ArithmeticError if the results differ, or whatever a kernel raises.
    """
    size = layer.router.scale.shape[0]
    _try_write_heads(layer.attention, device, dtype)
    for rows in _ROUTED_ROWS:
        _try_route(layer, _waves(rows, size, device=device, dtype=dtype))
    _try_experts(layer, _waves(_ROUTED_ROWS[0], size, device=device, dtype=dtype))


def in_full(weight: Weight, dtype: torch.dtype) -> Tensor:
    """Returns a weight in this dtype, dequantised if it is quantised."""
    if isinstance(weight, QuantizedWeight):
        return weight.dequantize(dtype)
    assert isinstance(weight, Tensor)
    return weight


def is_experts(weight: QuantizedWeight) -> bool:
    return weight.codes.ndim == 3


def _trial_rows(
    groups: int, inputs: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Tensor]:
    # A linear has tiles of its own for a canvas.
    for average in _ROWS if groups > 1 else (*_ROWS, CANVAS):
        count = _FEW + average * groups
        numbers = torch.arange(count * inputs, dtype=torch.int32, device=device)
        yield numbers.view(count, inputs).sin().to(dtype)


def _trial_ends(groups: int, rows: Tensor) -> Tensor:
    ends = torch.full((groups,), _FEW, dtype=torch.int32, device=rows.device)
    ends[-1] = rows.shape[0]
    return ends


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
        in_full(router.proj, x.dtype),
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


def _compare(actual: Tensor, expected: Tensor) -> None:
    error = float((actual.float() - expected.float()).abs().max())
    largest = float(expected.abs().max())
    if not error <= _TOLERANCE * largest:
        raise ArithmeticError(f"off by {error} where the largest result is {largest}")
