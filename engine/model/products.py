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
            return grouped_mm(rows, weight, ends, kernel)


def grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor, kernel: Kernel) -> Tensor:
    """Returns each expert's rows times its dense weight: [R, K], [E, N, K], [E] -> [R, N]."""
    if kernel == "triton":
        # Imported here because triton is slow to import, and not installed everywhere.
        from engine.kernels.grouped_linear import grouped_linear

        return grouped_linear(rows, weights, ends)
    return F.grouped_mm(rows, weights.mT, offs=ends)


def quantized_product(rows: Tensor, weight: QuantizedWeight, ends: Tensor | None) -> Tensor:
    """Returns rows @ weight.T: [R, K], [N, K] -> [R, N].

    With `ends` [E], returns each expert's rows times its weight: [R, K], [E, N, K] -> [R, N].
    """
    if weight.kernel == "triton":
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
