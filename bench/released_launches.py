"""Launches of every kernel with the released model's shapes, on tensors without memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from engine.kernels import (
    block_noise,
    combine,
    condition,
    dispatch,
    gated,
    grouped_linear,
    prefix_attention,
    route,
    vocab_draw,
    vocab_statistics,
    write_heads,
)
from engine.kernels.dequantise import Scheme
from engine.sizing.weights import INT4_GROUP, SCALE_TYPE

MADE_SCALES: torch.dtype = getattr(torch, SCALE_TYPE)
# Formats of weights with 2,816 inputs: name, scheme, scales a row and their dtype, and if there are
# zeros. The first ones behind "dense" are made while loading, the others are published.
LAYOUTS: tuple[tuple[str, Scheme, int | None, torch.dtype, bool], ...] = (
    ("dense", "dense", None, torch.bfloat16, False),
    ("int8", "int8", 1, MADE_SCALES, False),
    ("fp8", "fp8", 1, MADE_SCALES, False),
    ("int4", "int4", 2816 // INT4_GROUP, MADE_SCALES, False),
    ("llm-compressor's INT8", "int8", 1, torch.float32, False),
    ("RedHatAI's FP8-dynamic", "fp8", 1, torch.float32, False),
    ("NVFP4", "nvfp4", 176, torch.float8_e4m3fn, False),
    ("GGUF's Q8_0", "int8", 88, torch.float16, False),
    ("GGUF's Q6_K", "int8", 176, torch.float32, False),
    ("GGUF's Q4_K", "int4", 88, torch.float16, True),
)


def launch_grouped_linear() -> Iterator[str]:
    """Launch the released model's products in the layouts of the formats that are read.

    They are the experts' gate and up for one canvas and for four, and a sliding layer's queries,
    keys and values for one canvas. Yields each launch's name after it.
    """
    for name, scheme, columns, scale_type, zeros in LAYOUTS:
        for rows, groups in ((2048, 128), (8192, 128), (256, None)):
            if rows == 8192 and scheme not in ("dense", "nvfp4"):
                continue  # these take the most shared memory
            outputs, inputs = (8192 if groups is None else 1408), 2816
            front = () if groups is None else (groups,)
            codes = (*front, outputs, inputs // (2 if scheme in ("int4", "nvfp4") else 1))
            with torch.device("meta"):
                scales = None
                if columns is not None:
                    scales = torch.empty(*front, outputs, columns).to(scale_type)
                grouped_linear.grouped_linear(
                    torch.empty(rows, inputs, dtype=torch.bfloat16),
                    torch.empty(codes).to(torch.bfloat16 if scales is None else torch.uint8),
                    None if groups is None else torch.empty(groups, dtype=torch.int32),
                    scheme=scheme,
                    scales=scales,
                    zeros=scales if zeros else None,
                    global_scale=torch.empty(front) if scheme == "nvfp4" else None,
                )
            yield f"{name}, {rows} rows of {groups or 'no'} groups"


def launch_prefix_attention() -> Iterator[str]:
    """Launch the released model's attention for one canvas, for two, and for a prompt.

    Yields each launch's name after it.
    """
    for kv_heads, size, window in ((8, 256, 1024), (2, 512, None)):
        for causal in (False, True):
            with torch.device("meta"):
                queries = torch.empty(16, 256, size, dtype=torch.bfloat16)
                keys = torch.empty(kv_heads, 8448, size, dtype=torch.bfloat16)
                span = torch.empty(2, dtype=torch.int64)
            options: dict[str, Any] = {"causal": True, "window": window} if causal else {}
            prefix_attention.prefix_attention(queries, keys, keys, span, **options)
            yield f"attention, head size {size}, {'a prompt' if causal else 'a canvas'}"
        with torch.device("meta"):
            caches = torch.empty(2, 2, kv_heads, 8448, size, dtype=torch.bfloat16)
            spans, slots = torch.empty(2, 2, dtype=torch.int64), torch.empty(2, dtype=torch.int64)
        prefix_attention.prefix_attention(
            queries.repeat(1, 2, 1), caches[:, 0], caches[:, 1], spans, slots=slots
        )
        yield f"attention, head size {size}, two canvases"


def penalty(vocab: int) -> dict[str, Any]:
    """Returns the largest bias as the arguments of the kernels that know one."""
    return {"values": torch.empty(vocab), "factors": torch.empty(vocab)}


def launch_vocab_statistics() -> Iterator[str]:
    """Launch the released vocabulary's statistics for a canvas, and yield their names."""
    with torch.device("meta"):
        logits = torch.empty(256, 262144, dtype=torch.bfloat16)
        row = torch.empty(256)
        for name, bias in (("no bias", {}), ("a penalty", penalty(262144))):
            out = vocab_statistics.vocab_statistics(
                logits, row, row, softcap=30.0, group=256, **bias
            )
            yield f"vocabulary statistics, {name}"
            vocab_statistics.vocab_peaks(logits, out, slice(0, 256), softcap=30.0, **bias)
            yield f"vocabulary peaks, {name}"


def launch_group_draw() -> Iterator[str]:
    """Launch the draw of a canvas from the released vocabulary, and yield each name after it."""
    with torch.device("meta"):
        hidden, mass = torch.empty(256, 2816, dtype=torch.bfloat16), torch.empty(256, 1024)
        row, wanted = torch.empty(256), torch.empty(256, dtype=torch.bool)
        tokens, scales = torch.empty(256, dtype=torch.int64), torch.empty(262144, 1).half()
        for dtype in (torch.bfloat16, torch.int8, torch.float8_e4m3fn):
            vocab_draw.group_draw(
                mass,
                hidden,
                torch.empty(262144, 2816, dtype=dtype),
                row,
                row,
                wanted,
                tokens,
                slice(0, 256),
                softcap=30.0,
                scales=None if dtype == torch.bfloat16 else scales,
                **penalty(262144),
            )
            yield f"draw, {dtype}"


def launch_truncated_draw() -> Iterator[str]:
    """Launch truncated draws from the released vocabulary, and yield each name after it."""
    with torch.device("meta"):
        logits = torch.empty(256, 262144, dtype=torch.bfloat16)
        row, wanted = torch.empty(256), torch.empty(256, dtype=torch.bool)
        tokens, probs = torch.empty(256, dtype=torch.int64), torch.empty(256, 262144)
        for top_k, top_p in ((0, 1.0), (0, 0.9), (50, 0.9)):
            vocab_draw.truncated_draw(
                logits,
                probs,
                row,
                row,
                wanted,
                tokens,
                0,
                slice(0, 256),
                softcap=30.0,
                top_k=top_k,
                top_p=top_p,
                min_p=0.1,
                **penalty(262144),
            )
            yield f"draw from the likeliest tokens, top-k {top_k}, top-p {top_p}"


def launch_block_noise() -> Iterator[str]:
    """Launch a block's random numbers, and yield the launch's name."""
    with torch.device("meta"):
        block_noise.block_noise_tensors(
            (1, 2**32 - 1),
            3,
            4,
            steps=48,
            canvas_length=256,
            vocab_size=262144,
            device=torch.device("meta"),
        )
    yield "a block's noise"


def half(*shape: int) -> torch.Tensor:
    """Returns a tensor of this shape in 16 bits without memory."""
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def launch_write_heads() -> Iterator[str]:
    """Launch the norms and rotation of the released model's layers for two canvases."""
    slots = torch.empty(2, dtype=torch.int64, device="meta")
    for kv_heads, size, parts in ((8, 256, 2), (2, 512, 1)):
        write_heads.write_heads(
            half(512, (16 + parts * kv_heads) * size),
            half(size),
            half(size),
            (half(512, size), half(512, size)),
            half(2, 2, kv_heads, 8448, size),
            slots,
            slots,
            query_heads=16,
            eps=1e-6,
        )
        yield f"heads of size {size}"


def launch_route() -> Iterator[str]:
    """Launch the released model's routing for a canvas and for a prompt."""
    for rows in (256, 1792):
        x, norm = half(rows, 2816), half(2816)
        router, scale = half(128, 2816), half(128)
        route.route(x, x, norm, norm, norm, norm, router, scale, per_token=8, eps=1e-6)
        yield f"routing of {rows} rows"


def launch_dispatch() -> Iterator[str]:
    """Launch the copies of a canvas' rows to 128 experts."""
    experts = torch.empty(256, 8, dtype=torch.int32, device="meta")
    dispatch.dispatch(half(256, 2816), experts, 128)
    yield "dispatch"


def launch_gated() -> Iterator[str]:
    """Launch the gates of both MLPs of the released model, and those of one."""
    gated.gated(half(256, 4224), half(2048, 1408))
    yield "gates of both MLPs"
    gated.gated(half(256, 4224))
    yield "gates"


def launch_combine() -> Iterator[str]:
    """Launch the end of a layer of the released model."""
    x, norm, one = half(256, 2816), half(2816), half(1)
    with torch.device("meta"):
        indices, shares = torch.empty(256, 8, dtype=torch.int32), torch.empty(256, 8)
    sparse, norms = half(2048, 2816), (norm, norm, norm, norm)
    combine.combine(x, x, sparse, indices, shares, norms, (one, one), 0, 1e-6)
    yield "end of a layer"


def launch_condition() -> Iterator[str]:
    """Launch the beginning of a pass of the released model."""
    x = half(256, 2816)
    condition.condition(x, x, half(2816), scale=53.0, eps=1e-6)
    yield "conditioning"


# Each module, its kernels, and the function that launches them and yields each launch's name.
LAUNCHED: tuple[tuple[Any, tuple[str, ...], Callable[[], Iterator[str]]], ...] = (
    (grouped_linear, ("_kernel",), launch_grouped_linear),
    (prefix_attention, ("_kernel", "_combine"), launch_prefix_attention),
    (vocab_statistics, ("_kernel",), launch_vocab_statistics),
    (vocab_draw, ("_group_kernel",), launch_group_draw),
    (vocab_draw, ("_truncated_kernel",), launch_truncated_draw),
    (block_noise, ("_kernel",), launch_block_noise),
    (write_heads, ("_kernel",), launch_write_heads),
    (route, ("_kernel",), launch_route),
    (dispatch, ("_kernel",), launch_dispatch),
    (gated, ("_kernel",), launch_gated),
    (combine, ("_kernel",), launch_combine),
    (condition, ("_kernel",), launch_condition),
)
