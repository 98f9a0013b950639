"""The canvas: a block in the making, on the device.

Knows what a canvas begins with and what it is conditioned on; not how a step moves it on
(denoising_step) nor which cache is behind it (denoiser). Letters: N canvases of a pass, C
positions of the widest, R of all together, D hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.noise import BlockNoise, block_noise
from engine.sampler import SamplerConfig
from engine.sequence import Sequence

NARROW_TOKENS = 16  # a narrower canvas has a multiple of these


@dataclass
class Canvas:
    """The block in the making, on the device."""

    noise: BlockNoise
    temperature: float  # the request's, which multiplies the schedule's
    tokens: Tensor  # [C] int64
    argmax: Tensor  # [C] int64; -1 before the first step
    stable: Tensor  # [] int64, steps for which argmax has stayed the same
    soft_embeddings: Tensor | None = None  # [C, D] self-conditioning; None before the first step
    step_index: int = 0  # denoising steps that it has had


@dataclass(frozen=True)
class Rows:
    """The rows of canvases that stand one behind the other, and as a tensor of one row each."""

    widths: list[int]

    def padded(self, flat: Tensor, padding: float) -> Tensor:
        """[R] -> [N, C]."""
        if len(set(self.widths)) == 1:
            return flat.view(len(self.widths), -1)
        return pad_sequence(
            list(torch.split(flat, self.widths)), batch_first=True, padding_value=padding
        )

    def flat(self, padded: Tensor) -> Tensor:
        """[N, C] -> [R]."""
        if len(set(self.widths)) == 1:
            return padded.flatten()
        return torch.cat([row[:width] for row, width in zip(padded, self.widths, strict=True)])


def new_canvas(
    sequence: Sequence,
    *,
    sampler: SamplerConfig,
    canvas_length: int,
    vocab_size: int,
    device: torch.device,
    narrow: bool,
    ahead: int = 0,
) -> Canvas:
    """The canvas of the sequence's current block, or of one that is so many ahead.

    With `narrow` it is no wider than what `max_tokens` leaves needs.
    """
    width = canvas_length
    if narrow:
        room = sequence.request.max_tokens - sequence.answer_tokens - ahead * canvas_length
        width = min(canvas_length, -(-room // NARROW_TOKENS) * NARROW_TOKENS)
    noise = block_noise(
        sequence.request.sampling.seed,
        sequence.block_index + ahead,
        steps=sampler.max_denoising_steps,
        canvas_length=width,
        vocab_size=vocab_size,
        device=device,
    )
    start = noise.canvases[0]
    return Canvas(
        noise,
        sequence.request.sampling.temperature,
        tokens=start,
        argmax=torch.full_like(start, -1),
        stable=torch.zeros((), dtype=torch.int64, device=device),
    )


def self_conditioning(canvases: list[Canvas], like: Tensor) -> Tensor | None:
    """What the canvases' next step is told of the last one, [R, D]; zeros before the first step.

    None if all stand before it. `like` [V, D] has the hidden size, dtype and device.
    """
    if all(canvas.soft_embeddings is None for canvas in canvases):
        return None
    return torch.cat(
        [
            like.new_zeros(canvas.tokens.shape[0], like.shape[1])
            if canvas.soft_embeddings is None
            else canvas.soft_embeddings
            for canvas in canvases
        ]
    )
