"""The sparse half of a layer: the router that chooses experts, and the experts.

Letters: T tokens, D hidden size, E experts, k experts a token, I an expert's inner size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model.quantization import (
    QuantizedWeight,
    StackedWeight,
    Weight,
    as_scheme,
    quantized_grouped_mm,
)


class Choice(NamedTuple):
    """For each token its experts and their shares."""

    experts: Tensor  # [T, k] int64
    weights: Tensor  # [T, k] float32


class Router(nn.Module):
    """Softmax over all experts, the best k renormalised to sum 1, times each expert's scale."""

    def __init__(self, size: int, experts: int, per_token: int) -> None:
        super().__init__()
        self.per_token = per_token
        self.scale = nn.Parameter(torch.empty(size))
        self.proj = nn.Parameter(torch.empty(experts, size))
        self.per_expert_scale = nn.Parameter(torch.empty(experts))

    def forward(self, normed: Tensor) -> Choice:
        """[T, D], RMS-normed without a weight -> the choice."""
        scores = F.linear(normed * self.scale * normed.shape[-1] ** -0.5, self.proj)  # [T, E]
        shares, experts = scores.softmax(-1, dtype=torch.float32).topk(self.per_token)  # [T, k]
        shares = shares / shares.sum(-1, keepdim=True)
        return Choice(experts, shares * self.per_expert_scale[experts])


class Experts(nn.Module):
    """All experts' gated MLPs as two grouped products over tokens sorted by expert."""

    def __init__(self, size: int, inner: int, experts: int) -> None:
        super().__init__()
        self.gate_up: Weight = nn.Parameter(torch.empty(experts, 2 * inner, size))
        self.down: Weight = nn.Parameter(torch.empty(experts, size, inner))

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """[T, D] -> [T, D], each token's experts summed in a fixed order."""
        count, per_token = choice.experts.shape
        flat = choice.experts.flatten()  # [T * k]
        order = flat.argsort(stable=True)
        ends = group_ends(flat[order], self.gate_up.shape[0])
        rows = x[order // per_token]  # [T * k, D], one expert's after another's
        gate, up = grouped_product(rows, self.gate_up, ends).chunk(2, dim=-1)
        inner = F.gelu(gate, approximate="tanh") * up
        out = grouped_product(inner, self.down, ends)
        unsorted = torch.empty_like(out).index_copy_(0, order, out).view(count, per_token, -1)
        return (unsorted * choice.weights[..., None].to(out.dtype)).sum(1)


def grouped_product(rows: Tensor, weight: Weight, ends: Tensor) -> Tensor:
    """Each expert's rows times its weight: [R, K], [E, N, K] and where they end, [E] -> [R, N]."""
    match weight:
        case StackedWeight():
            products = [grouped_product(rows, part, ends) for part in weight.parts]
            return torch.cat(products, dim=-1)
        case QuantizedWeight():
            if torch.compiler.is_compiling():
                out: Tensor = compiled_quantized_grouped_mm(
                    rows, ends, weight.scheme, **weight.tensors()
                )
                return out
            return quantized_grouped_mm(rows, weight, ends)
        case _:
            # A compiler knows grouped_mm in bfloat16 alone; as one piece it takes it in any type.
            product = compiled_grouped_mm if torch.compiler.is_compiling() else grouped_mm
            return product(rows, weight, ends)


def grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """The product with a weight that is not quantised."""
    return F.grouped_mm(rows, weights.mT, offs=ends)


@torch.library.custom_op("easel::grouped_mm", mutates_args=())
def compiled_grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """The same, into which a compiler does not look."""
    return grouped_mm(rows, weights, ends).contiguous()


@compiled_grouped_mm.register_fake
def _(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:  # noqa: ARG001  # the op's own arguments
    return rows.new_empty(rows.shape[0], weights.shape[1])


@torch.library.custom_op("easel::quantized_grouped_mm", mutates_args=())
def compiled_quantized_grouped_mm(
    rows: Tensor,
    ends: Tensor,
    scheme: str,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    global_scale: Tensor | None = None,
) -> Tensor:
    """The product with a quantised weight, into which a compiler does not look either."""
    weight = QuantizedWeight(as_scheme(scheme), codes, scales, zeros, global_scale)
    return quantized_grouped_mm(rows, weight, ends)


@compiled_quantized_grouped_mm.register_fake
def _(
    rows: Tensor,
    ends: Tensor,  # noqa: ARG001  # these are the op's own arguments
    scheme: str,  # noqa: ARG001
    codes: Tensor,
    scales: Tensor,  # noqa: ARG001
    zeros: Tensor | None = None,  # noqa: ARG001
    global_scale: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
    return rows.new_empty(rows.shape[0], codes.shape[-2])


def group_ends(ordered: Tensor, groups: int) -> Tensor:
    """Where each group ends in ascending group numbers [T]: [groups] int32, as grouped_mm wants it.

    Not by bincount, for whose result the host would wait on a GPU.
    """
    numbers = torch.arange(groups, device=ordered.device)
    return torch.searchsorted(ordered, numbers, right=True, out_int32=True)
