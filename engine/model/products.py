"""Products of rows with a weight, dense or quantised, by PyTorch's kernels or by our Triton kernel.

`engine/model/kernel_choice.py` chooses the kernel of each weight once the model is loaded. For a
quantised weight, our kernel reads the codes and never makes the host wait. The plain product holds
the weight in full while it is used, and with experts the host waits to know which of them have
rows. Activations keep their dtype in both.

Letters: R rows, E experts, N output features, K input features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.weights.quantization import (
    Kernel,
    QuantizedWeight,
    StackedWeight,
    Weight,
    as_scheme,
)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """Returns x @ weight.T: [R, K], [N, K] -> [R, N]."""
    match weight:
        case StackedWeight():
            return torch.cat([linear(x, part) for part in weight.parts], dim=-1)
        case QuantizedWeight():
            return quantized_product(x, weight, None)
        case _:
            return F.linear(x, weight)


def grouped_product(rows: Tensor, weight: Weight, ends: Tensor, kernel: Kernel) -> Tensor:
    """Returns each expert's rows times its weight: [R, K], [E, N, K], [E] -> [R, N].

    `ends` [E] int32 holds the index at which each expert's rows end. `kernel` is used for dense
    weights; quantised ones carry their own.
    """
    match weight:
        case StackedWeight():
            products = [grouped_product(rows, part, ends, kernel) for part in weight.parts]
            return torch.cat(products, dim=-1)
        case QuantizedWeight():
            return quantized_product(rows, weight, ends)
        case _:
            # The compiler knows grouped_mm for bfloat16 only. An opaque op may have any dtype.
            product = compiled_grouped_mm if torch.compiler.is_compiling() else grouped_mm
            return product(rows, weight, ends, kernel)


def grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor, kernel: str) -> Tensor:
    """Returns each expert's rows times its dense weight: [R, K], [E, N, K], [E] -> [R, N]."""
    if kernel == "triton":
        # Imported here because triton is slow to import, and not installed everywhere.
        from engine.kernels.grouped_linear import grouped_linear

        return grouped_linear(rows, weights, ends)
    return F.grouped_mm(rows, weights.mT, offs=ends)


@torch.library.custom_op("easel::grouped_mm", mutates_args=())
def compiled_grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor, kernel: str) -> Tensor:
    """Returns the same as `grouped_mm`. The compiler does not look into this op."""
    return grouped_mm(rows, weights, ends, kernel).contiguous()


@compiled_grouped_mm.register_fake
def _(rows: Tensor, weights: Tensor, ends: Tensor, kernel: str) -> Tensor:  # noqa: ARG001  # the op's own arguments
    return rows.new_empty(rows.shape[0], weights.shape[1])


def quantized_product(rows: Tensor, weight: QuantizedWeight, ends: Tensor | None) -> Tensor:
    """Returns rows @ weight.T: [R, K], [N, K] -> [R, N].

    With `ends` [E], returns each expert's rows times its weight: [R, K], [E, N, K] -> [R, N].
    """
    triton = weight.kernel == "triton"
    # The compiler can look into one product only: the plain one without experts.
    if torch.compiler.is_compiling() and (triton or ends is not None):
        out: Tensor = compiled_quantized_product(
            rows, ends, weight.scheme, triton, **weight.tensors()
        )
        return out
    if triton:
        # Imported here because triton is slow to import, and not installed everywhere.
        from engine.kernels.grouped_linear import grouped_linear

        return grouped_linear(
            rows,
            weight.codes,
            ends,
            scheme=weight.scheme,
            scales=weight.scales,
            zeros=weight.zeros,
            global_scale=weight.global_scale,
        )
    if ends is not None:
        return _plain_grouped_product(rows, weight, ends)
    return F.linear(rows, weight.dequantize(rows.dtype))


@torch.library.custom_op("easel::quantized_product", mutates_args=())
def compiled_quantized_product(
    rows: Tensor,
    ends: Tensor | None,
    scheme: str,
    triton: bool,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    global_scale: Tensor | None = None,
) -> Tensor:
    """Returns the same as `quantized_product`. The compiler does not look into this op."""
    kernel: Kernel = "triton" if triton else "torch"
    weight = QuantizedWeight(as_scheme(scheme), codes, scales, zeros, global_scale, kernel)
    return quantized_product(rows, weight, ends)


@compiled_quantized_product.register_fake
def _(
    rows: Tensor,
    ends: Tensor | None,  # noqa: ARG001  # these are the op's own arguments
    scheme: str,  # noqa: ARG001
    triton: bool,  # noqa: ARG001
    codes: Tensor,
    scales: Tensor,  # noqa: ARG001
    zeros: Tensor | None = None,  # noqa: ARG001
    global_scale: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
    return rows.new_empty(rows.shape[0], codes.shape[-2])


def _plain_grouped_product(rows: Tensor, weight: QuantizedWeight, ends: Tensor) -> Tensor:
    """Returns each expert's rows times its weight, holding one expert at a time in full.

    The host waits for the device to know how many rows each expert has.
    """
    out = rows.new_empty(rows.shape[0], weight.shape[-2])
    start = 0
    for index, end in enumerate(ends.tolist()):
        if end > start:
            whole = weight.expert(index).dequantize(rows.dtype)
            out[start:end] = F.linear(rows[start:end], whole)
        start = end
    return out
