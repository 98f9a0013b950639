"""Counter-based random numbers: a function of (seed, stream, block, step, position) alone.

No generator has a state. So the same request gets the same tokens whatever else is being served,
and it can be resumed at any block. The generator is Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011), written in int64 tensor arithmetic so that every device
computes the same bits. A GPU has a kernel that computes them too, in one launch.

Letter: C positions of the canvas.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.weights.quantization import Kernel

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class BlockNoise:
    """All the random numbers that one block can need.

    `canvases[0]` is the starting canvas, and step s - 1 renoises with `canvases[s]`. Step s samples
    with `uniforms[s]`.
    """

    canvases: Tensor  # [steps + 1, C] int64, in 0 .. vocab_size - 1
    uniforms: Tensor  # [steps, C] float32, in [0, 1)


def block_noise(
    seed: int,
    block: int,
    *,
    steps: int,
    canvas_length: int,
    vocab_size: int,
    device: torch.device,
    stream: int = 0,
    kernel: Kernel = "torch",
) -> BlockNoise:
    """Returns the numbers of block `block` (from 0) for a request with `seed` (0 .. 2**64 - 1).

    Each `stream` (0 .. 2**32 - 1) of a seed has numbers that are unrelated to the other streams'.
    Either `kernel` computes the same bits. Triton's runs on a GPU.
    """
    key = (seed & _MASK, seed >> 32)
    if kernel == "triton":
        # Imported here because triton is slow to import, and not installed everywhere.
        from engine.kernels.block_noise import block_noise_tensors

        return BlockNoise(
            *block_noise_tensors(
                key,
                block,
                stream,
                steps=steps,
                canvas_length=canvas_length,
                vocab_size=vocab_size,
                device=device,
            )
        )
    position = torch.arange(canvas_length, device=device).expand(steps + 1, canvas_length)
    step = torch.arange(steps + 1, device=device)[:, None].expand(steps + 1, canvas_length)
    counter = (position, step, torch.full_like(position, block), torch.full_like(position, stream))
    words = philox(counter, key)
    # Multiply-shift instead of a remainder: its bias is at most vocab_size / 2**32.
    canvases = (words[0] * vocab_size) >> 32
    # 24 bits: as many as a float32 in [0, 1) can hold exactly.
    uniforms = (words[1][:-1] >> 8).to(torch.float32) * 2.0**-24
    return BlockNoise(canvases, uniforms)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns four 32-bit words for each counter, by Philox4x32-10.

    The counter's four words and the result are int64 tensors of one shape, which may be any.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _KEY_INCREMENTS[0]) & _MASK
        k1 = (k1 + _KEY_INCREMENTS[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Returns the high and low 32 bits of a * b.

    The int64 product may wrap to a negative number, but all of its 64 bits are right.
    """
    product = a * b
    return (product >> 32) & _MASK, product & _MASK
