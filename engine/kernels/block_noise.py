"""A block's random numbers in one launch: the same bits as `engine/denoise/noise.py` computes.

There each of Philox's ten rounds is a dozen operations, 129 launches in all. The host only launches
the kernel: it computes no number and copies none, so it never waits.

Letter: C positions of the canvas.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256  # numbers a program


def block_noise_tensors(
    key: tuple[int, int],
    block: int,
    stream: int,
    *,
    steps: int,
    canvas_length: int,
    vocab_size: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Returns tokens [steps + 1, C] int64 and uniform numbers [steps, C] float32 of a block.

    `key` has the low and the high 32 bits of the seed. All numbers are below 2^32.
    """
    tokens = torch.empty(steps + 1, canvas_length, dtype=torch.int64, device=device)
    uniforms = torch.empty(steps, canvas_length, dtype=torch.float32, device=device)
    words = (_signed(word) for word in (*key, block, stream))
    _kernel[(triton.cdiv(tokens.numel(), _BLOCK),)](
        tokens, uniforms, *words, steps, canvas_length, vocab_size, _BLOCK
    )
    return tokens, uniforms


def _signed(word: int) -> int:
    """Returns the signed number of the same 32 bits, so that every word has one type."""
    return word - 2**32 if word >= 2**31 else word


@triton.jit(  # type: ignore[untyped-decorator]  # Triton has no types
    do_not_specialize=["key0", "key1", "block", "stream", "steps", "canvas_length"]
)
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    tokens,
    uniforms,
    key0,
    key1,
    block,
    stream,
    steps,
    canvas_length,
    VOCAB: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    BLOCK: tl.constexpr,  # noqa: N803
):
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), tl.uint32)
    step = number // canvas_length
    c0 = (number % canvas_length).to(tl.uint32)
    c1 = step.to(tl.uint32)
    c2, c3 = zero + block.to(tl.uint32), zero + stream.to(tl.uint32)
    k0, k1 = zero + key0.to(tl.uint32), zero + key1.to(tl.uint32)
    m0, m1 = zero + 0xD2511F53, zero + 0xCD9E8D57
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, m0), c0 * m0
        high1, low1 = tl.umulhi(c2, m1), c2 * m1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    token = tl.umulhi(c0, zero + VOCAB).to(tl.int64)
    tl.store(tokens + number, token, mask=step <= steps)
    uniform = (c1 >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    tl.store(uniforms + number, uniform, mask=step < steps)
