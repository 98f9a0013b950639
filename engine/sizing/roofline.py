"""Compute the least time that a denoising step can take on a device, by the roofline model.

A step reads every weight once: 256 rows with 8 of 128 experts each use every expert. It reads the
embedding twice (for lm_head and for the soft embeddings) and the keys and values once. It moves the
logits four times in 16 bits (see `engine/kernels/vocab_statistics.py`).

A multiplication and its addition are two floating-point operations. They are counted for each
weight that a row uses, and twice for each query-key pair and element of a head: for the scores and
for the values. The step takes at least the longer of bytes / bandwidth and operations / peak
(Williams et al., "Roofline", CACM 2009).
"""

from dataclasses import dataclass

from engine.config import Formats, Hardware
from engine.sizing.dimensions import Dimensions
from engine.sizing.weights import weight_counts

_HALF = 2  # bytes of an element in 16 bits


@dataclass(frozen=True)
class StepCost:
    """The bytes and operations of a denoising step."""

    fixed_bytes: float  # independent of the number of canvases
    canvas_bytes: float  # for each canvas
    canvas_flops: float  # for each canvas

    def seconds(self, *, bandwidth: float, peak: float, canvases: int = 1) -> float:
        """Returns the least time of a step with this number of canvases.

        `bandwidth` is in bytes/s and `peak` in operations/s.
        """
        return max(
            self.memory_seconds(bandwidth=bandwidth, canvases=canvases),
            canvases * self.canvas_flops / peak,
        )

    def memory_seconds(self, *, bandwidth: float, canvases: int = 1) -> float:
        """Returns the time in which the step's bytes are moved."""
        return (self.fixed_bytes + canvases * self.canvas_bytes) / bandwidth


def step_cost(
    dimensions: Dimensions,
    formats: Formats,
    *,
    context: int,
) -> StepCost:
    """Returns the bytes and operations of one denoising step behind `context` tokens.

    Unquantised weights have 16 bits. The bytes are those that a fused kernel would read. Where the
    vocabulary's codes are widened before a product, the real step moves more.
    """
    counts = weight_counts(dimensions)
    embedding = counts["embedding and lm_head"]
    dense = counts["attention"] + counts["dense MLP"]
    small = counts["router and norms"] + counts["self-conditioning"]
    rows = dimensions.canvas_length
    cached = [min(context, (shape.window or context + 1) - 1) for shape in dimensions.layers]
    pairs = sum(
        dimensions.query_heads * shape.head_size * (tokens + rows)
        for shape, tokens in zip(dimensions.layers, cached, strict=True)
    )
    active_experts = counts["experts"].total * dimensions.experts_per_token / dimensions.experts
    active = dense.total + small.total + active_experts + 2 * embedding.total
    kv = sum(
        2 * _HALF * shape.kv_heads * shape.head_size * tokens
        for shape, tokens in zip(dimensions.layers, cached, strict=True)
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
    """Returns the least time of a step on this device, in seconds.

    Products are computed in 16 bits, because quantised weights are widened before them.
    """
    return step.seconds(
        bandwidth=hardware.bandwidth_gb_s * 1e9,
        peak=hardware.bf16_tflops * 1e12,
        canvases=canvases,
    )
