"""Bounds on the kernels that a GPU launches for the network's part of a denoising step."""

import pytest
import torch
from torch.nn import functional as F

from bench.launches import count_launches, step_launches
from bench.roofline import released

MOST = 400  # with Triton's product of the experts
# PyTorch's grouped product makes two launches instead of one, twice in each of 30 layers.
MOST_WITH_TORCH = MOST + 2 * 30


@pytest.mark.parametrize("canvases", [1, 2])
@pytest.mark.parametrize(("product", "most"), [("triton", MOST), ("torch", MOST_WITH_TORCH)])
def test_a_step_of_the_released_model_has_few_launches(canvases, product, most):
    launches = step_launches(released(), canvases=canvases, product=product)
    assert 8 * 30 <= launches.total() <= most
    assert launches["triton.combine"] == 30


def test_the_first_pass_of_a_block_has_few_launches():
    launches = step_launches(released(), canvases=1, product="triton", commits=True)
    # Attention of both kinds, each with its parts combined, and both results together.
    assert launches.total() <= MOST + 3 * 30


def test_without_the_kernels_of_the_layers_there_are_five_times_as_many():
    launches = step_launches(released(), canvases=1, product="triton", layer_kernel="torch")
    assert launches.total() > 4.5 * MOST
    # Where the canvas' own entries are is computed once for all layers of a window. Each layer
    # numbers the experts.
    assert launches["aten.arange"] == 2 + 30


def test_operations_count_for_what_their_cuda_code_launches():
    x = torch.zeros(8, 16, device="meta", dtype=torch.bfloat16)

    def work():
        y = F.rms_norm(x, (16,), eps=1e-6)  # one kernel on a GPU
        y = (y + 1).view(2, -1)[1:].flatten()  # one, and views
        y.float().softmax(-1).topk(4)  # one, one, and two
        x[:0] *= 2  # nothing
        return y.argsort(stable=True)  # three

    counts = count_launches(work)
    assert counts.total() == 1 + 1 + 2 + 2 + 3, counts
