"""Muon, an optimiser for matrices inside a network: momentum with orthogonalised steps.

Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), with its
quintic Newton-Schulz iteration. PyTorch's own Muon does not accept stacks of matrices such as the
experts.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from demo.mixed_precision import product_type

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Optimises parameters [.., rows, columns]. Each matrix of a stack has a step of its own."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # it takes no closure
        for group in self.param_groups:
            updates: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                # Matrices of one shape go through the iteration together.
                rows, columns = parameter.shape[-2:]
                for matrix, step in zip(
                    parameter.view(-1, rows, columns), update.view(-1, rows, columns), strict=True
                ):
                    updates[rows, columns].append((matrix, step))
            for (rows, columns), pairs in updates.items():
                steps = orthogonalised(torch.stack([step for _, step in pairs]))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (matrix, _), step in zip(pairs, steps, strict=True):
                    matrix.sub_(step, alpha=scale)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Returns matrices [N, rows, columns] whose singular values have been moved near 1."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(product_type())
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
