"""The rows of the experts' products: tokens' rows, copied to the groups of their experts.

One kernel sorts the choices by expert and copies the rows. To know where its row goes, a program
counts the choices that are sorted before its own ones. It reads all choices for that, which are few
(2,048 for a canvas). So no program waits for another one, and the order never depends on timing.
PyTorch takes eight launches for this.

Letters: R rows, k experts a row, E experts, D hidden size.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHOICES = 512  # that a program compares with its own ones at once
_COLUMNS = 1024  # of a row, which are copied at once


class Dispatched(NamedTuple):
    """Rows in groups by expert. In a group they have the order of the choices."""

    rows: Tensor  # [R k, D]
    ends: Tensor  # [E] int32, the index at which each expert's rows end
    indices: Tensor  # [R, k] int32, the index of each choice's row in `rows`


def dispatch(x: Tensor, experts: Tensor, groups: int) -> Dispatched:
    """Returns the rows x [R, D] in groups, given each row's `experts` [R, k] int32.

    `groups` is the number of experts E. The tensors are contiguous.
    """
    (rows, size), (_, per_token) = x.shape, experts.shape
    assert x.is_contiguous()
    assert experts.is_contiguous()
    result = Dispatched(
        x.new_empty(rows * per_token, size),
        experts.new_empty(groups),
        torch.empty_like(experts),
    )
    each = max(2, triton.next_power_of_2(per_token))  # experts of a program behind the last row
    _kernel[(rows + triton.cdiv(groups, each),)](
        x, experts, *result, rows, groups, size, per_token, each, _CHOICES, _COLUMNS, num_warps=4
    )
    return result


def plain_dispatch(x: Tensor, experts: Tensor, groups: int) -> Dispatched:
    """Returns the same in plain PyTorch. The host waits."""
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    indices = torch.empty_like(flat)
    indices[order] = torch.arange(len(flat), dtype=torch.int32, device=flat.device)
    ends = flat.bincount(minlength=groups).cumsum(0).int()
    return Dispatched(x[order // experts.shape[1]], ends, indices.view_as(experts))


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    x,
    experts,
    out,
    ends,
    indices,
    rows,
    groups,
    size,
    PER_TOKEN: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    EACH: tl.constexpr,  # noqa: N803
    CHOICES: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0)
    number = tl.arange(0, EACH)
    choices = rows * PER_TOKEN
    if row < rows:
        # The sorted index of a choice: how many have a smaller expert, or its own and come earlier.
        inside = number < PER_TOKEN
        own = row * PER_TOKEN + number
        expert = tl.load(experts + own, mask=inside, other=0)
    else:
        # A group's end: how many choices have this expert or a smaller one.
        expert = (row - rows) * EACH + number
        inside = expert < groups
        own = tl.full((EACH,), 0, tl.int32) + choices
    before = tl.zeros((EACH,), tl.int32)
    for begin in range(0, choices, CHOICES):
        choice = begin + tl.arange(0, CHOICES)
        other = tl.load(experts + choice, mask=choice < choices, other=2147483647)[None, :]
        earlier = (other == expert[:, None]) & (choice[None, :] < own[:, None])
        before += tl.sum(((other < expert[:, None]) | earlier).to(tl.int32), 1)
    if row < rows:
        tl.store(indices + own, before, mask=inside)
        source = x + row.to(tl.int64) * size
        targets = out + before.to(tl.int64)[:, None] * size
        for begin in range(0, size, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            values = tl.load(source + column, mask=column < size, other=0.0)
            mask = inside[:, None] & (column < size)[None, :]
            tl.store(
                targets + column[None, :],
                tl.broadcast_to(values[None, :], (EACH, COLUMNS)),
                mask=mask,
            )
    else:
        tl.store(ends + expert, before, mask=inside)
