"""The canvas: a block in the making, on the device.

Knows what a canvas begins with and what it is conditioned on; not how a step moves it on
(denoising_step) nor which cache is behind it (denoiser). Letters: N canvases of a pass, C
positions of the widest, R of all together, D hidden size.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.denoise.noise import BlockNoise, block_noise
from engine.denoise.sampler import SamplerConfig
from engine.messages import Sampling
from engine.schedule.sequence import Sequence
from engine.tail.vocab_tail import Bias

# Added to a logit it makes a token impossible: finite, so that no difference of two is NaN, and far
# below where exp ends at any temperature.
_BANNED = -1e9
LEAST_TEMPERATURE = 1e-3  # a lower one is taken as this: float32 ends before it makes a difference


@dataclass
class Canvas:
    """The block in the making, on the device."""

    sampling: Sampling  # the request's
    sampler: SamplerConfig  # the checkpoint's, with the request's numbers
    noise: BlockNoise
    biases: list[Bias]  # of its own rows
    suffix: Tensor | None  # [S] int64, its last tokens, if they are fixed
    tokens: Tensor  # [C] int64
    argmax: Tensor  # [C] int64; -1 before the first step
    stable: Tensor  # [] int64, steps for which argmax has stayed the same
    soft_embeddings: Tensor | None = None  # [C, D] self-conditioning; None before the first step
    step_index: int = 0  # denoising steps that it has had

    @property
    def width(self) -> int:
        """C."""
        return self.tokens.shape[0]

    @property
    def greedy(self) -> bool:
        """Whether the one random thing is the starting noise."""
        return self.sampling.temperature == 0

    @property
    def temperature(self) -> float:
        """Of its next step; where it is greedy the schedule's own, for what is drawn with none."""
        factor = max(self.sampling.temperature or 1.0, LEAST_TEMPERATURE)
        return self.sampler.temperature(self.step_index) * factor


@dataclass(frozen=True)
class CanvasRows:
    """The rows of canvases that stand one behind the other, and as a tensor of one row each."""

    widths: list[int]

    @property
    def slices(self) -> list[slice]:
        """Of each canvas, its rows."""
        stops = accumulate(self.widths)
        return [slice(end - width, end) for end, width in zip(stops, self.widths, strict=True)]

    def padded(self, flat: Tensor, padding: float) -> Tensor:
        """[R] -> [N, C]."""
        if len(set(self.widths)) == 1:
            return flat.view(len(self.widths), -1)
        return pad_sequence(
            list(torch.split(flat, self.widths)), batch_first=True, padding_value=padding
        )

    def filled(self, values: list[float], device: torch.device) -> Tensor:
        """Each canvas' value in all of its rows, [R] float32.

        Filled in on the device: before it took a tensor from the host, the host would have to wait
        until it has done all that was launched.
        """
        return torch.cat(
            [
                torch.full((width,), value, dtype=torch.float32, device=device)
                for width, value in zip(self.widths, values, strict=True)
            ]
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
    ahead: list[int] | None = None,
) -> Canvas:
    """The canvas of the sequence's current block, or of the one behind it, if it is `ahead`.

    One that leads up to a suffix is just as wide as both.
    """
    sampling, block = sequence.request.sampling, sequence.block_index + bool(ahead)
    answer = [*sequence.answer, *(ahead or [])]
    width = canvas_length
    if sampling.suffix:
        width = sequence.request.max_tokens - len(answer) + len(sampling.suffix)
    end_tokens, sampler = sampler.end_tokens, sampler.of_request(sampling)
    noise = block_noise(
        sampling.seed,
        block,
        steps=sampler.max_denoising_steps,
        canvas_length=width,
        vocab_size=vocab_size,
        device=device,
        stream=sequence.stream(block),
    )
    start, suffix = noise.canvases[0], None
    if sampling.suffix:
        suffix = torch.tensor(sampling.suffix, device=device)
        start = torch.cat([start[: -len(suffix)], suffix])
    return Canvas(
        sampling,
        sampler,
        noise,
        _biases(sampling, answer, end_tokens, width, vocab_size, device),
        suffix,
        tokens=start,
        argmax=torch.full_like(start, -1),
        stable=torch.zeros((), dtype=torch.int64, device=device),
    )


def self_conditioning(canvases: list[Canvas], like: Tensor) -> Tensor | None:
    """What the canvases' next step is told of the last one, [R, D]; zeros before the first step.

    None if all stand before it. `like` [D] has the hidden size, dtype and device.
    """
    if all(canvas.soft_embeddings is None for canvas in canvases):
        return None
    return torch.cat(
        [
            like.new_zeros(canvas.width, like.shape[0])
            if canvas.soft_embeddings is None
            else canvas.soft_embeddings
            for canvas in canvases
        ]
    )


def _biases(
    sampling: Sampling,
    answer: list[int],
    end_tokens: Iterable[int],
    width: int,
    vocab_size: int,
    device: torch.device,
) -> list[Bias]:
    """What the request adds to the logits of a canvas behind its `answer` so far."""
    biases = []
    wanted = dict(sampling.logit_bias)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, times in Counter(answer).items():
            penalty = sampling.presence_penalty + times * sampling.frequency_penalty
            wanted[token] = wanted.get(token, 0.0) - penalty
    if any(wanted.values()):
        biases.append(Bias(slice(0, width), _vector(wanted, vocab_size, device)))
    early = min(sampling.min_tokens - len(answer), width)  # positions that are too early to end at
    banned = dict.fromkeys((token for token in end_tokens if token < vocab_size), _BANNED)
    if early > 0 and banned:
        biases.append(Bias(slice(0, early), _vector(banned, vocab_size, device)))
    return biases


def _vector(values: dict[int, float], size: int, device: torch.device) -> Tensor:
    """[size] float32, zero where there is no value."""
    vector = torch.zeros(size)
    vector[list(values)] = torch.tensor(list(values.values()), dtype=torch.float32)
    return vector.to(device)
