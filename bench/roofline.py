"""The least time that a denoising step of the released model can take, by device: arithmetic.

A step reads every weight once (256 rows with 8 of 128 experts each leave no expert out), the
embedding twice (lm_head and soft embedding), the keys and values, and moves the logits four times
in 16 bits (see `engine/kernels/vocab_statistics.py`). Its multiplications are two floating-point
operations for each weight that a row meets and each query-key pair, twice. The step takes at least
the longer of bytes / bandwidth and operations / peak (Williams et al., "Roofline", CACM 2009).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch

from bench.compare import Row
from engine.kv_cache import LayerShape
from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig, Rope

CONTEXT = 8192
TOKENS_A_STEP = (10, 15, 20)


@dataclass(frozen=True)
class Device:
    """Peak figures as the maker gives them, dense: bytes/s and floating-point operations/s."""

    bandwidth: float
    bf16: float
    fp8: float


# NVIDIA's H100 and H200 data sheets, Ada and RTX Blackwell architecture white papers (GeForce:
# with 32-bit accumulation) and DGX Spark and B300 specifications. For the Spark only 1 PFLOP/s of
# sparse FP4 is given: an eighth of it is dense BF16 and a quarter dense FP8.
DEVICES = {
    "H100 SXM": Device(3.35e12, 989e12, 1979e12),
    "H200": Device(4.8e12, 989e12, 1979e12),
    "RTX 4090": Device(1.008e12, 165e12, 330e12),
    "RTX 5090": Device(1.792e12, 209.5e12, 419e12),
    "RTX PRO 6000": Device(1.792e12, 503.8e12, 1007e12),
    "DGX Spark": Device(0.273e12, 125e12, 250e12),
    "DGX Station (B300)": Device(8.0e12, 2250e12, 4500e12),
}


@dataclass(frozen=True)
class Weights:
    """Bytes a weight by its place, and which peak its products have."""

    experts: float
    linears: float
    fp8: bool = False


FORMS = {
    "BF16": Weights(2, 2),
    "FP8": Weights(1, 1, fp8=True),
    "4-bit experts": Weights(4.5 / 8, 2),  # groups of 32 with a 16-bit scale
}

RELEASED = ModelConfig(
    vocab_size=262144,
    hidden_size=2816,
    mlp_size=2112,
    query_heads=16,
    layers=tuple(
        LayerShape(2, 512, None) if index % 6 == 5 else LayerShape(8, 256, 1024)
        for index in range(30)
    ),
    experts=128,
    experts_per_token=8,
    expert_size=704,
    norm_eps=1e-6,
    softcap=30.0,
    sliding_rope=Rope(10_000.0),
    full_rope=Rope(1_000_000.0, 0.25),
    canvas_length=256,
    max_positions=262144,
    bidirectional_images=True,
)


@dataclass(frozen=True)
class Step:
    """What a step costs; `fixed` bytes whatever the number of canvases, the rest for each."""

    fixed_bytes: float
    canvas_bytes: float
    canvas_flops: float


def step(config: ModelConfig, weights: Weights, context: int = CONTEXT) -> Step:
    """Bytes and operations of one denoising step behind `context` tokens."""
    with torch.device("meta"):
        model = DiffusionGemma(config)
    count = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(n for name, n in count.items() if ".experts." in name)
    embedding = count["embedding"]
    linears = sum(count.values()) - experts - embedding
    rows = config.canvas_length
    seen = [min(context, (shape.window or context + 1) - 1) for shape in config.layers]
    pairs = sum(
        config.query_heads * shape.head_size * (tokens + rows)
        for shape, tokens in zip(config.layers, seen, strict=True)
    )
    active = linears + experts * config.experts_per_token / config.experts + 2 * embedding
    kv = sum(
        2 * 2 * shape.kv_heads * shape.head_size * tokens
        for shape, tokens in zip(config.layers, seen, strict=True)
    )
    return Step(
        fixed_bytes=experts * weights.experts + linears * weights.linears + 2 * 2 * embedding,
        canvas_bytes=kv + 4 * 2 * rows * config.vocab_size,
        canvas_flops=rows * (2 * active + 4 * pairs),
    )


def rows() -> Iterator[Row]:
    for name, device in DEVICES.items():
        for form, weights in FORMS.items():
            cost = step(RELEASED, weights)
            peak = device.fp8 if weights.fp8 else device.bf16
            memory_s = (cost.fixed_bytes + cost.canvas_bytes) / device.bandwidth
            compute_s = cost.canvas_flops / peak
            least_s = max(memory_s, compute_s)
            # From how many canvases on the operations take longer than the bytes.
            spare = cost.canvas_flops / peak - cost.canvas_bytes / device.bandwidth
            yield {
                "case": f"{name}, {form}",
                "step_ms": least_s * 1e3,
                "bound": "memory" if memory_s >= compute_s else "compute",
                **{f"tokens_s_at_{n}": n / least_s for n in TOKENS_A_STEP},
                "compute_bound_from": ceil(cost.fixed_bytes / device.bandwidth / spare)
                if spare > 0
                else None,
            }
