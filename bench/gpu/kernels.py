"""The stage "kernels": each Triton kernel against float32, with PyTorch's time beside its own.

Letters: E experts, D hidden size, I size of an expert, T queries, H query heads, K key-value heads,
S entries of the KV cache, d head size, R rows, V vocabulary.
"""

import dataclasses
import gc
import math
import time
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu.device import (
    DEVICE,
    HALF,
    TINY,
    empty_cache,
    gpu_ms,
    relative_error,
    sync,
    wall_ms,
)
from bench.gpu.results import guarded, write_row
from bench.random_weights import random_quantized
from engine.kernels.grouped_linear import grouped_linear
from engine.kernels.prefix_attention import prefix_attention
from engine.kernels.vocab_statistics import plain_vocab_statistics, vocab_statistics
from engine.model.embedding import Embedding, mixed, products
from engine.model.products import quantized_product
from engine.tail.vocab_tail import TailResult, draw, triton_draw, triton_vocab_tail, vocab_tail
from engine.weights.quantization import FromDense, QuantizedWeight, quantize

_STAGE = "kernels"
_MOST_ERROR = 1e-2
_SOFTCAP = 30.0
_COPIES = 1 if TINY else 12  # of a linear's weights: more than the L2 cache holds
_EXPERTS, _HIDDEN, _EXPERT_SIZE = (4, 64, 96) if TINY else (128, 2816, 704)
_SCHEMES: tuple[FromDense | None, ...] = (None, "int8", "fp8", "int4")


class _Product(NamedTuple):
    name: str
    shape: tuple[int, ...]  # of the weight: [E, N, K] or [N, K]
    rows: int


class _Attention(NamedTuple):
    kv_heads: int
    head_size: int
    window: int | None
    entries: int


_PRODUCTS = [
    _Product(name, shape, rows)
    for rows in ((24,) if TINY else (2048, 6144))
    for name, shape in (
        ("experts gate_up", (_EXPERTS, 2 * _EXPERT_SIZE, _HIDDEN)),
        ("experts down", (_EXPERTS, _HIDDEN, _EXPERT_SIZE)),
    )
] + (
    [_Product("sliding qkv", (96, _HIDDEN), 24)]
    if TINY
    else [
        _Product("sliding qkv", (8192, _HIDDEN), 256),
        _Product("full out", (_HIDDEN, 8192), 256),
        _Product("mlp down", (_HIDDEN, 2112), 256),
        _Product("sliding qkv", (8192, _HIDDEN), 768),
    ]
)
_ATTENTIONS = (
    [_Attention(2, 32, 16, 64), _Attention(1, 64, None, 64)]
    if TINY
    else [
        _Attention(8, 256, 1024, 1279),
        _Attention(2, 512, None, 8448),
        _Attention(2, 512, None, 33024),
    ]
)


def check_kernels() -> None:
    """Compare each kernel with float32 and time it."""
    for product in _PRODUCTS:
        for scheme in _SCHEMES:
            case = f"{product.name}, {product.rows} rows, {scheme or 'dense'}"
            guarded(_STAGE, case, partial(_check_product, case, product, scheme))
            gc.collect()
            empty_cache()
    for shape in _ATTENTIONS:
        case = f"attention d={shape.head_size}, {shape.entries} entries"
        guarded(_STAGE, case, partial(_check_attention, case, shape))
    for quantised in (False, True):
        case = f"tail, embedding {'int8' if quantised else 'bf16'}"
        guarded(_STAGE, case, partial(_check_tail, case, quantised=quantised))


def _check_product(case: str, product: _Product, scheme: FromDense | None) -> None:
    shape, grouped = product.shape, len(product.shape) == 3
    ends = _random_ends(product.rows, shape[0]) if grouped else None
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(product.rows, shape[-1], generator=generator).to(DEVICE, HALF)
    weights = [_weight(shape, scheme, seed) for seed in range(1 if grouped else _COPIES)]
    started = time.perf_counter()
    actual = _product(x, weights[0], ends)
    sync()
    first_s = time.perf_counter() - started
    expected = _float32_product(x, weights[0], ends)
    error = relative_error(actual, expected)
    ms = gpu_ms([partial(_product, x, weight, ends) for weight in weights])
    nbytes = weights[0].nbytes
    dense = [weight for weight in weights if isinstance(weight, Tensor)]
    torch_values = {}
    # On other GPUs PyTorch's grouped product waits for the host, so no graph can hold it.
    if dense and (TINY or not grouped or torch.cuda.get_device_capability()[0] in (9, 10)):
        torch_ms = gpu_ms([partial(_torch_product, x, weight, ends) for weight in dense])
        torch_values = {
            "torch_error": relative_error(_torch_product(x, dense[0], ends), expected),
            "torch_ms": torch_ms,
            "torch_gb_s": nbytes / torch_ms / 1e6,
        }
    write_row(
        _STAGE,
        case=case,
        ok=error < _MOST_ERROR,
        error=error,
        ms=ms,
        gb_s=nbytes / ms / 1e6,
        compile_s=round(first_s, 2),
        **torch_values,
    )


def _random_ends(rows: int, groups: int) -> Tensor:
    """Returns the index [E] at which each group ends if rows choose their groups at random."""
    chosen = torch.randint(0, groups, (rows,), generator=torch.Generator().manual_seed(0))
    return chosen.bincount(minlength=groups).cumsum(0).int().to(DEVICE)


def _weight(
    shape: tuple[int, ...], scheme: FromDense | None, seed: int
) -> Tensor | QuantizedWeight:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    std = shape[-1] ** -0.5
    if scheme is None:
        return torch.randn(shape, device=DEVICE, generator=generator).mul_(std).to(HALF)
    weight = random_quantized(torch.Size(shape), scheme, std, generator)
    return dataclasses.replace(weight, kernel="triton")


def _product(x: Tensor, weight: Tensor | QuantizedWeight, ends: Tensor | None) -> Tensor:
    if isinstance(weight, Tensor):
        return grouped_linear(x, weight, ends)
    return quantized_product(x, weight, ends)


def _torch_product(x: Tensor, weight: Tensor, ends: Tensor | None) -> Tensor:
    return F.linear(x, weight) if ends is None else F.grouped_mm(x, weight.mT, offs=ends)


def _float32_product(x: Tensor, weight: Tensor | QuantizedWeight, ends: Tensor | None) -> Tensor:
    if ends is None:
        return x.float() @ _float32(weight).mT
    parts, start = [], 0
    for number, end in enumerate(ends.tolist()):
        expert = weight[number] if isinstance(weight, Tensor) else weight.expert(number)
        parts.append(x[start:end].float() @ _float32(expert).mT)
        start = end
    return torch.cat(parts)


def _float32(weight: Tensor | QuantizedWeight) -> Tensor:
    return weight.float() if isinstance(weight, Tensor) else weight.dequantize(torch.float32)


def _check_attention(case: str, shape: _Attention) -> None:
    """Compare a span of the entries, then causal queries, with float32. Time the span."""
    kv_heads, size, window, entries = shape
    heads, count = (4, 16) if TINY else (16, 256)
    generator = torch.Generator().manual_seed(0)
    queries, keys = (
        (F.normalize(torch.randn(*sizes, generator=generator), dim=-1).to(DEVICE) * 4).to(HALF)
        for sizes in ((heads, count, size), (kv_heads, entries, size))
    )
    values = torch.randn(kv_heads, entries, size, generator=generator).to(DEVICE, HALF)
    first, end = 3, entries - 5
    span = torch.tensor([first, end], device=DEVICE)
    grouped = queries.float().reshape(kv_heads, -1, size)

    scores = grouped @ keys.float()[:, first:end].mT
    expected = (scores.softmax(-1) @ values.float()[:, first:end]).reshape(heads, count, size)
    error = relative_error(prefix_attention(queries, keys, values, span), expected)

    index = torch.arange(entries, device=DEVICE)
    distance = index[entries - count :, None] - index
    unseen = (distance < 0) | (distance >= (window or entries + 1))
    scores = (grouped @ keys.float().mT).reshape(heads, count, entries)
    weights = scores.masked_fill_(unseen, -math.inf).softmax(-1).reshape(kv_heads, -1, entries)
    expected = (weights @ values.float()).reshape(heads, count, size)
    causal = prefix_attention(queries, keys, values, causal=True, window=window)
    causal_error = relative_error(causal, expected)
    del scores, weights, expected

    def torch_attention() -> Tensor:
        grouped = queries.reshape(1, kv_heads, -1, size)
        return F.scaled_dot_product_attention(grouped, keys[None], values[None], scale=1.0)

    copies = [(keys.clone(), values.clone()) for _ in range(1 if TINY or entries > 2000 else 8)]
    ms = gpu_ms([partial(prefix_attention, queries, k, v, span) for k, v in copies])
    write_row(
        _STAGE,
        case=case,
        ok=max(error, causal_error) < _MOST_ERROR,
        error=error,
        causal_error=causal_error,
        ms=ms,
        gb_s=2 * keys.nbytes / ms / 1e6,
        tflops=4 * heads * count * entries * size / ms / 1e9,
        torch_ms=guarded(_STAGE, f"PyTorch's {case}", lambda: wall_ms(torch_attention)),
    )


def _check_tail(case: str, *, quantised: bool) -> None:
    """Compare the vocabulary tail with its plain form, and time it whole and part by part."""
    rows, vocab = (8, 1280) if TINY else (256, 262144)
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, generator=generator)

    dense = (normal(vocab, _HIDDEN) * (2.8 * _HIDDEN**-0.5)).to(HALF)
    embedding: Embedding = quantize(dense, "int8", DEVICE) if quantised else dense
    hidden = normal(rows, _HIDDEN).to(HALF)
    temperatures = torch.full((rows,), 0.6, device=DEVICE)
    uniform = torch.rand(rows, device=DEVICE, generator=generator)
    wanted = torch.ones(rows, dtype=torch.bool, device=DEVICE)
    scale = _HIDDEN**0.5

    def whole() -> TailResult:
        return triton_vocab_tail(
            hidden,
            embedding,
            temperatures,
            softcap=_SOFTCAP,
            embedding_scale=scale,
            least_temperatures=[(slice(0, rows), 0.6)],
        )

    def plain() -> TailResult:
        return vocab_tail(hidden, embedding, temperatures, softcap=_SOFTCAP, embedding_scale=scale)

    def draws(result: TailResult) -> Tensor:
        draws = triton_draw if result is ours else draw
        return draws(result, hidden, embedding, temperatures, uniform, wanted, softcap=_SOFTCAP)

    ours, expected = whole(), plain()
    logits = products(hidden, embedding)
    shift = (logits.amax(-1).float() / _SOFTCAP).tanh()
    sharpness = _SOFTCAP / temperatures
    a, b = logits.clone(), logits.clone()  # both functions overwrite them with probabilities
    statistics = vocab_statistics(a, sharpness, shift, softcap=_SOFTCAP, group=256)
    plain_statistics = plain_vocab_statistics(b, sharpness, shift, softcap=_SOFTCAP, group=256)
    statistics_error = relative_error(statistics.mass, plain_statistics.mass)
    write_row(
        _STAGE,
        case=case,
        # Not by the index: on a GPU, PyTorch returns any one of several equal logits.
        ok=statistics_error < _MOST_ERROR and torch.equal(statistics.best, plain_statistics.best),
        same_argmax=float((ours.argmax == expected.argmax).float().mean()),
        entropy_off=float((ours.entropy - expected.entropy).abs().max()),
        soft_error=relative_error(ours.soft_embeddings, expected.soft_embeddings),
        same_draws=float((draws(ours) == draws(expected)).float().mean()),
        error=statistics_error,
        same_best_index=torch.equal(statistics.best_index, plain_statistics.best_index),
        ms=gpu_ms([whole]),
        products_ms=gpu_ms([lambda: products(hidden, embedding)]),
        amax_ms=gpu_ms([lambda: logits.amax(-1)]),
        statistics_ms=gpu_ms(
            [lambda: vocab_statistics(a, sharpness, shift, softcap=_SOFTCAP, group=256)]
        ),
        mixed_ms=gpu_ms([lambda: mixed(b, embedding, HALF)]),
        draw_ms=gpu_ms([lambda: draws(ours)]),
        torch_ms=wall_ms(plain, rounds=3),
    )
