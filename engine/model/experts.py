"""The sparse half of a layer: the router that chooses experts, and the experts.

Letters: T tokens, D hidden size, E experts, k experts a token, I an expert's inner size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model.products import grouped_product, linear
from engine.weights.quantization import Kernel, Weight


class Routing(NamedTuple):
    """Each token's experts and their shares."""

    experts: Tensor  # [T, k] int64
    weights: Tensor  # [T, k] float32


class Router(nn.Module):
    """Chooses each token's experts.

    It takes a softmax over all experts, renormalises the best k to sum 1, and multiplies each by
    its expert's scale.
    """

    def __init__(self, size: int, experts: int, per_token: int) -> None:
        super().__init__()
        self.per_token = per_token
        self.scale = nn.Parameter(torch.empty(size))
        self.proj: Weight = nn.Parameter(torch.empty(experts, size))
        self.per_expert_scale = nn.Parameter(torch.empty(experts))

    def forward(self, normed: Tensor) -> Routing:
        """Returns the routing of tokens [T, D], which are RMS-normed without a weight."""
        scores = linear(normed * self.scale * normed.shape[-1] ** -0.5, self.proj)  # [T, E]
        shares, experts = scores.softmax(-1, dtype=torch.float32).topk(self.per_token)  # [T, k]
        shares = shares / shares.sum(-1, keepdim=True)
        return Routing(experts, shares * self.per_expert_scale[experts])


class Experts(nn.Module):
    """All experts' gated MLPs, as two grouped products over tokens sorted by expert."""

    def __init__(self, size: int, inner: int, experts: int) -> None:
        super().__init__()
        self.kernel: Kernel = "torch"  # for dense weights; quantised ones carry their own
        self.gate_up: Weight = nn.Parameter(torch.empty(experts, 2 * inner, size))  # [E, 2 I, D]
        self.down: Weight = nn.Parameter(torch.empty(experts, size, inner))  # [E, D, I]

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """Returns the sum of each token's experts, [T, D] -> [T, D].

        The order of summation is fixed, so that results can be repeated.
        """
        count, per_token = routing.experts.shape
        flat = routing.experts.flatten()  # [T * k]
        order = flat.argsort(stable=True)
        ends = group_ends(flat[order], self.gate_up.shape[0])
        rows = x[order // per_token]  # [T * k, D], sorted by expert
        gate, up = grouped_product(rows, self.gate_up, ends, self.kernel).chunk(2, dim=-1)
        inner = F.gelu(gate, approximate="tanh") * up
        out = grouped_product(inner, self.down, ends, self.kernel)
        unsorted = torch.empty_like(out).index_copy_(0, order, out).view(count, per_token, -1)
        return (unsorted * routing.weights[..., None].to(out.dtype)).sum(1)


def group_ends(ordered: Tensor, groups: int) -> Tensor:
    """Returns the index at which each group ends in `ordered`, as grouped_mm requires: [G] int32.

    `ordered` [T] holds group numbers in ascending order, and `groups` is their count G. On a GPU
    the host would wait for the result of bincount, so this uses searchsorted.
    """
    numbers = torch.arange(groups, device=ordered.device)
    return torch.searchsorted(ordered, numbers, right=True, out_int32=True)
