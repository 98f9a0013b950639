"""The least time that a denoising step can take on a device: arithmetic.

A step reads every weight once (256 rows with 8 of 128 experts each leave no expert out), the
embedding twice (lm_head and soft embedding), the keys and values, and moves the logits four times
in 16 bits (see `engine/kernels/vocab_statistics.py`). Its multiplications are two floating-point
operations for each weight that a row meets and each query-key pair, twice. The step takes at least
the longer of bytes / bandwidth and operations / peak (Williams et al., "Roofline", CACM 2009).
"""

from dataclasses import dataclass

from engine.config import Formats, Hardware
from engine.sizing.dimensions import Dimensions
from engine.sizing.weights import weight_counts

_HALF = 2  # bytes of an element in 16 bits


@dataclass(frozen=True)
class StepCost:
    """What a step costs; `fixed` bytes whatever the number of canvases, the rest for each."""

    fixed_bytes: float
    canvas_bytes: float
    canvas_flops: float

    def seconds(self, *, bandwidth: float, peak: float, canvases: int = 1) -> float:
        """The least time of a step of so many canvases; bytes/s and operations/s."""
        return max(
            self.memory_seconds(bandwidth=bandwidth, canvases=canvases),
            canvases * self.canvas_flops / peak,
        )

    def memory_seconds(self, *, bandwidth: float, canvases: int = 1) -> float:
        """The time to move its bytes."""
        return (self.fixed_bytes + canvases * self.canvas_bytes) / bandwidth


def step_cost(
    dimensions: Dimensions,
    formats: Formats,
    *,
    context: int,
) -> StepCost:
    """Bytes and operations of one denoising step behind `context` tokens.

    Weights that are not quantised have 16 bits. What a kernel would do is counted: a vocabulary's
    codes that are widened before a product cost more than their own bytes.
    """
    counts = weight_counts(dimensions)
    embedding = counts["embedding and lm_head"]
    dense = counts["attention"] + counts["dense MLP"]
    small = counts["router and norms"] + counts["self-conditioning"]
    rows = dimensions.canvas_length
    seen = [min(context, (shape.window or context + 1) - 1) for shape in dimensions.layers]
    pairs = sum(
        dimensions.query_heads * shape.head_size * (tokens + rows)
        for shape, tokens in zip(dimensions.layers, seen, strict=True)
    )
    active_experts = counts["experts"].total * dimensions.experts_per_token / dimensions.experts
    active = dense.total + small.total + active_experts + 2 * embedding.total
    kv = sum(
        2 * _HALF * shape.kv_heads * shape.head_size * tokens
        for shape, tokens in zip(dimensions.layers, seen, strict=True)
    )
    return StepCost(
        fixed_bytes=counts["experts"].nbytes(formats.experts, _HALF)
        + dense.nbytes(formats.linears, _HALF)
        + small.nbytes(formats.rest, _HALF)
        + 2 * embedding.nbytes(formats.rest, _HALF),
        canvas_bytes=kv + 4 * _HALF * rows * dimensions.vocab_size,
        canvas_flops=rows * (2 * active + 4 * pairs),
    )


def device_step_s(step: StepCost, hardware: Hardware, canvases: int = 1) -> float:
    """On this device, whose products are of 16 bits: quantised weights are widened on the way."""
    return step.seconds(
        bandwidth=hardware.bandwidth_gb_s * 1e9,
        peak=hardware.bf16_tflops * 1e12,
        canvases=canvases,
    )
