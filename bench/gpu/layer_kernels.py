"""Rows of the stage "kernels" for the kernels between a layer's products, and for a block's noise.

Each is compared with its plain form in float32, and timed beside its plain form.

Letters: R rows, D hidden size, E experts, k experts a row, I size of an expert, K key-value heads,
d head size.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu.device import DEVICE, HALF, TINY, gpu_ms, relative_error, wall_ms
from bench.gpu.results import guarded, write_row
from engine.denoise.noise import BlockNoise, block_noise
from engine.kernels.combine import combine, plain_combine
from engine.kernels.condition import condition, plain_condition
from engine.kernels.dispatch import dispatch, plain_dispatch
from engine.kernels.gated import gated, plain_gated
from engine.kernels.route import plain_route, route
from engine.kernels.write_heads import plain_write_heads, write_heads
from engine.weights.quantization import Kernel

_STAGE = "kernels"
_MOST_ERROR = 1e-2
_EPS = 1e-6
_ROWS, _HIDDEN, _EXPERTS, _CHOSEN = (8, 64, 4, 2) if TINY else (256, 2816, 128, 8)
_EXPERT_SIZE, _MLP_SIZE = (32, 48) if TINY else (704, 2112)
_ENTRIES = 16 if TINY else 8448

Form = Callable[..., Sequence[Tensor]]


class _Part(NamedTuple):
    name: str
    kernel: Form
    plain: Form
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    moved: int  # bytes that have to be read and written


def check_layer_kernels() -> None:
    """Compare each kernel with its plain form in float32, and time both."""
    for each in _kernels():
        guarded(_STAGE, each.name, partial(_check, each))
    guarded(_STAGE, "a block's noise", _check_noise)


def _check(each: _Part) -> None:
    wide = [_wide(value) for value in each.arguments]
    expected = each.plain(*wide, **each.options)
    error = max(
        relative_error(ours, theirs)
        for ours, theirs in zip(each.kernel(*each.arguments, **each.options), expected, strict=True)
        if theirs.is_floating_point()
    )
    ms = gpu_ms([partial(each.kernel, *each.arguments, **each.options)] * (1 if TINY else 10))
    write_row(
        _STAGE,
        case=each.name,
        ok=error < _MOST_ERROR,
        error=error,
        ms=ms,
        gb_s=each.moved / ms / 1e6,
        torch_ms=wall_ms(partial(each.plain, *each.arguments, **each.options)),
    )


def _wide(value: object) -> object:
    """Returns a copy of a tensor, or of tensors, in float32 unless they are integers."""
    if isinstance(value, tuple):
        return tuple(map(_wide, value))
    if isinstance(value, Tensor):
        return value.float().clone() if value.is_floating_point() else value.clone()
    return value


def _check_noise() -> None:
    """Compare the random numbers of a block, which have to be the same, and time both ways."""
    steps, canvas, vocab = (3, 16, 512) if TINY else (48, 256, 262144)

    def noise(kernel: Kernel) -> BlockNoise:
        options: dict[str, Any] = {"canvas_length": canvas, "vocab_size": vocab, "device": DEVICE}
        return block_noise(2**40 + 7, 3, steps=steps, stream=1, kernel=kernel, **options)

    ours, plain = noise("triton"), noise("torch")
    same = torch.equal(ours.canvases, plain.canvases) and torch.equal(ours.uniforms, plain.uniforms)
    write_row(
        _STAGE,
        case="a block's noise",
        ok=same,
        error=0.0 if same else 1.0,
        ms=gpu_ms([partial(noise, "triton")]),
        torch_ms=wall_ms(partial(noise, "torch")),
    )


def _kernels() -> Iterator[_Part]:
    """Yields the kernels with the released model's sizes, in the order in which a layer runs."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
        return torch.randn(*shape, device=DEVICE, generator=generator).to(dtype)

    def norm(size: int = _HIDDEN) -> Tensor:
        return 1 + normal(size) / 10

    row_bytes = _ROWS * _HIDDEN * HALF.itemsize
    chosen = torch.rand(_ROWS, _EXPERTS, device=DEVICE, generator=generator).argsort(1)
    experts = chosen[:, :_CHOSEN].int().contiguous()
    x = normal(_ROWS, _HIDDEN)
    yield _Part(
        "the beginning of a pass",
        condition,
        plain_condition,
        (x, normal(_ROWS, _HIDDEN), norm()),
        {"scale": _HIDDEN**0.5, "eps": _EPS},
        4 * row_bytes,
    )
    for kv_heads, size, parts in ((2, 16, 2),) if TINY else ((8, 256, 2), (2, 512, 1)):
        query_heads = 4 if TINY else 16
        projected = normal(_ROWS, (query_heads + parts * kv_heads) * size)
        angles = torch.rand(_ROWS, size // 2, device=DEVICE, generator=generator).repeat(1, 2)
        zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        yield _Part(
            f"heads of size {size}",
            partial(_heads, write_heads),
            partial(_heads, plain_write_heads),
            (
                projected,
                norm(size),
                norm(size),
                (angles.cos().to(HALF), angles.sin().to(HALF)),
                torch.zeros(1, 2, kv_heads, _ENTRIES, size, dtype=HALF, device=DEVICE),
                zero,
                zero + 3,
            ),
            {"query_heads": query_heads, "eps": _EPS},
            2 * projected.nbytes,
        )
    router = (normal(_EXPERTS, _HIDDEN) * _HIDDEN**-0.5).contiguous()
    yield _Part(
        "routing",
        lambda *arguments, **options: route(*arguments, **options)[:3],
        lambda *arguments, **options: plain_route(*arguments, **options)[:3],
        (x, normal(_ROWS, _HIDDEN), norm(), norm(), norm(), norm(), router, norm(_EXPERTS)),
        {"per_token": _CHOSEN, "eps": _EPS},
        5 * row_bytes + router.nbytes,
    )
    yield _Part(
        "dispatch",
        dispatch,
        plain_dispatch,
        (x, experts, _EXPERTS),
        {},
        (1 + _CHOSEN) * row_bytes,
    )
    dense, sparse = normal(_ROWS, 2 * _MLP_SIZE), normal(_ROWS * _CHOSEN, 2 * _EXPERT_SIZE)
    yield _Part(
        "gates of both MLPs",
        gated,
        lambda *products: [plain_gated(each) for each in products],
        (dense, sparse),
        {},
        (dense.nbytes + sparse.nbytes) * 3 // 2,
    )
    indices = torch.randperm(experts.numel(), device=DEVICE, generator=generator).int()
    shares = torch.rand(_ROWS, _CHOSEN, device=DEVICE, generator=generator)
    one = torch.ones(1, dtype=HALF, device=DEVICE)
    norms = (norm(), norm(), norm(), norm())
    yield _Part(
        "the end of a layer",
        combine,
        plain_combine,
        (
            x,
            normal(_ROWS, _HIDDEN),
            normal(_ROWS * _CHOSEN, _HIDDEN),
            indices.view(_ROWS, _CHOSEN),
            shares,
            norms,
            (one, one),
            0,
            _EPS,
        ),
        {},
        (4 + _CHOSEN) * row_bytes,
    )


def _heads(write: Callable[..., Tensor], *arguments: Any, **options: Any) -> Sequence[Tensor]:
    """Returns the queries of `write`, and the cache into which it has written."""
    return write(*arguments, **options), arguments[4]
