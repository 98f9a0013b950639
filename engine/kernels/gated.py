"""gelu(gate) * up, as one kernel for the products of the dense MLP and of the experts.

The approximation of gelu is that with tanh.

Letters: R rows, I inner size.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

_ROWS, _COLUMNS = 4, 256  # of a program's tile


def gated(product: Tensor, other: Tensor | None = None) -> list[Tensor]:
    """Returns gelu(gate) * up of one or two tensors, [R, 2 I] -> [R, I].

    Their R and I may differ, and their dtype is the same. In a tensor, all gates are before all
    ups. They are contiguous.
    """
    products = [product] if other is None else [product, other]
    assert all(each.is_contiguous() for each in products)
    out = [each.new_empty(each.shape[0], each.shape[1] // 2) for each in products]
    tiles = [
        triton.cdiv(each.shape[0], _ROWS) * triton.cdiv(each.shape[1], _COLUMNS) for each in out
    ]
    others = (None, None, 0, 0) if other is None else (other, out[1], *out[1].shape)
    _kernel[(sum(tiles),)](
        product, out[0], *out[0].shape, tiles[0], *others, _ROWS, _COLUMNS, num_warps=4
    )
    return out


def plain_gated(product: Tensor) -> Tensor:
    """Returns the same of one tensor in plain PyTorch."""
    gate, up = product.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


@triton.jit(do_not_specialize=["rows", "tiles", "other_rows"])  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    product,
    out,
    rows,
    inner,
    tiles,
    other,
    other_out,
    other_rows,
    other_inner,
    ROWS: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    COLUMNS: tl.constexpr,  # noqa: N803
):
    tile = tl.program_id(0)
    if tile < tiles:
        _tile(product, out, rows, inner, tile, ROWS, COLUMNS)
    elif other is not None:
        _tile(other, other_out, other_rows, other_inner, tile - tiles, ROWS, COLUMNS)


@triton.jit  # type: ignore[untyped-decorator]
def _tile(product, out, rows, inner, tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    across = tl.cdiv(inner, COLUMNS)
    row = (tile // across * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tile % across * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    mask = (row < rows) & (column < inner)
    source = product + row.to(tl.int64) * (2 * inner) + column
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(source + inner, mask=mask, other=0.0).to(tl.float32)
    # tanh computed with exp, which every Triton backend has. Above 15 it is 1.
    angle = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)  # sqrt(2 / pi)
    tanh = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * tl.minimum(angle, 15.0)))
    result = 0.5 * gate * (1.0 + tanh) * up
    tl.store(out + row.to(tl.int64) * inner + column, result.to(out.dtype.element_ty), mask=mask)
