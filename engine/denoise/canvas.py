"""The canvas: a block in the making, on the device.

This module defines how a canvas starts and what it is conditioned on. `denoising_step` advances
it, and `denoiser` holds the cache behind it.

Letters: N canvases of a pass, C positions of the widest canvas, R positions (rows) of all canvases
together, D hidden size.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.constraint.projection import Projector
from engine.constraint.rules import GrammarRules
from engine.denoise.canvas_constraint import CanvasConstraint
from engine.denoise.frontier_constraint import FrontierConstraint
from engine.denoise.noise import BlockNoise, block_noise
from engine.denoise.prediction import PredictedAnswer
from engine.denoise.sampler import SamplerConfig
from engine.denoise.stopping import StepFigures, first_end
from engine.messages import GenerateRequest, Sampling
from engine.schedule.sequence import Sequence
from engine.tail.vocab_tail import Bias
from engine.weights.quantization import Kernel

# Added to a logit, this makes a token impossible. It is finite, so that no difference of two logits
# is NaN, and far below the point at which exp underflows at any temperature.
_BANNED = -1e9
Rules = Projector | GrammarRules  # the constraint of a request's answers
# The share of the predicted tokens that noise hides. A model trusts a canvas that has none, also
# where it is wrong. Where it has to find a hidden token itself, it notices what does not fit.
PREDICTION_NOISE = 0.25
LEAST_TEMPERATURE = 1e-3  # lower ones are raised to it: in float32 they make no difference


@dataclass
class Canvas:
    """The state of one block in the making, with the sampler that its request has."""

    sampling: Sampling  # the request's
    sampler: SamplerConfig  # the checkpoint's, with the numbers that the request sets
    noise: BlockNoise
    biases: list[Bias]  # their rows count from the canvas' first one
    prefix: Tensor | None  # int64, the first tokens, as far as the constraint fixes them
    suffix: Tensor | None  # [S] int64, the last tokens if the request fixes them
    constraint: CanvasConstraint | FrontierConstraint | None
    tokens: Tensor  # [C] int64
    figures: StepFigures | None = None  # of the last step, or before the first of a prediction
    soft_embeddings: Tensor | None = None  # [C, D] self-conditioning; None before the first step
    step_index: int = 0  # the number of denoising steps so far
    # Returns a draft up to where a thought has no tokens left, and whether it has one.
    cut: Callable[[list[int]], tuple[list[int], bool]] | None = None

    @property
    def width(self) -> int:
        """Returns the number of positions, C."""
        return self.tokens.shape[0]

    @property
    def fixed(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields the positions whose tokens are fixed, with these tokens."""
        if self.prefix is not None:
            yield slice(0, len(self.prefix)), self.prefix
        if self.suffix is not None:
            yield slice(self.width - len(self.suffix), self.width), self.suffix

    @property
    def greedy(self) -> bool:
        """Returns whether nothing but the starting noise is random."""
        return self.sampling.temperature == 0

    @property
    def temperature(self) -> float:
        """Returns the temperature of the next step.

        For a greedy canvas it is the schedule's own: entropies and soft embeddings still need one.
        """
        factor = max(self.sampling.temperature or 1.0, LEAST_TEMPERATURE)
        return self.sampler.temperature(self.step_index) * factor

    def next_figures(self, draft: list[int], entropies: list[float]) -> StepFigures:
        """Returns the figures of a step that gave this draft and these entropies [C].

        With the option `early_end`, the positions behind the first end token may change, and have
        an entropy of zero. They stay in the average, so that the stopping rule fires no later than
        if all positions counted. (When they were left out of the average it fired later: after 2.63
        steps a block of the demo model instead of 2.47.)
        """
        last, ends, counted = self.figures, self.sampler.end_tokens, self.width
        if self.sampler.early_end:
            counted = first_end(draft, ends)
            entropies = [*entropies[:counted], *[0.0] * (self.width - counted)]
        is_stable = last is not None and draft[:counted] == last.draft[:counted]
        return StepFigures(
            draft,
            steps=self.step_index + 1,
            stable_steps=last.stable_steps + 1 if last is not None and is_stable else 0,
            entropies=entropies,
            ends=ends,
        )


@dataclass(frozen=True)
class CanvasRows:
    """The rows of a pass' canvases, one canvas after another.

    Converts between flat tensors [R] and padded ones [N, C] with a row for each canvas.
    """

    widths: list[int]

    @classmethod
    def of(cls, canvases: list[Canvas]) -> "CanvasRows":
        return cls([canvas.width for canvas in canvases])

    @property
    def slices(self) -> list[slice]:
        """Returns each canvas' rows as a slice of all R."""
        stops = accumulate(self.widths)
        return [slice(end - width, end) for end, width in zip(stops, self.widths, strict=True)]

    def padded(self, flat: Tensor, padding: float) -> Tensor:
        """Returns `flat` [R] as [N, C], with `padding` behind narrower canvases."""
        if len(set(self.widths)) == 1:
            return flat.view(len(self.widths), -1)
        return pad_sequence(
            list(torch.split(flat, self.widths)), batch_first=True, padding_value=padding
        )

    def filled(self, values: list[float], device: torch.device) -> Tensor:
        """Returns [R] float32 on `device`, with each canvas' value in all of its rows.

        The tensor is filled on the device. To copy one from the host, the host would have to wait
        for everything that was launched before.
        """
        return joined(
            [
                torch.full((width,), value, dtype=torch.float32, device=device)
                for width, value in zip(self.widths, values, strict=True)
            ]
        )

    def flat(self, padded: Tensor) -> Tensor:
        """Returns `padded` [N, C] as [R], without the padding."""
        if len(set(self.widths)) == 1:
            return padded.flatten()
        return torch.cat([row[:width] for row, width in zip(padded, self.widths, strict=True)])


def joined(parts: list[Tensor]) -> Tensor:
    """Returns the parts [..] one after another, without a copy if there is one only."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def new_canvas(
    sequence: Sequence,
    *,
    sampler: SamplerConfig,
    canvas_length: int,
    vocab_size: int,
    device: torch.device,
    rules: Rules | None = None,
    prediction: PredictedAnswer | None = None,
    ahead: list[int] | None = None,
    kernel: Kernel = "torch",
) -> Canvas:
    """Returns a new canvas for the sequence's current block. `kernel` makes its random numbers.

    `rules` and `prediction` are the request's constraint and its predicted answer, if it has them.
    With `ahead`, the current block's draft, the canvas is for the next block. A canvas that ends
    with the request's suffix is exactly as wide as the remaining answer and the suffix.

    Predicted tokens stand in the canvas instead of most of the noise, and count as the argmax of
    the step before. So a block that is predicted to its end is finished by the first step that
    confirms all of it. A block that is started again starts from noise alone.
    """
    sampling, block = sequence.request.sampling, sequence.block_index + bool(ahead)
    answer = [*sequence.answer, *(ahead or [])]
    width = canvas_length
    if sampling.suffix:
        width = sequence.request.max_tokens - len(answer) + len(sampling.suffix)
    ends = {*sampler.end_tokens, *sampling.end_tokens, *sampling.stop_token_ids}
    if sampler.padding is not None:
        ends.add(sampler.padding)
    sampler = sampler.for_request(sampling)
    noise = block_noise(
        sampling.seed,
        block,
        steps=sampler.max_denoising_steps,
        canvas_length=width,
        vocab_size=vocab_size,
        device=device,
        stream=sequence.stream(block),
        kernel=kernel,
    )
    start, suffix = noise.canvases[0], None
    predicted: list[int] = []
    if prediction is not None and not (sequence.rerolled and not ahead):
        free = width - len(sampling.suffix)
        predicted = prediction.following(sequence.answer, ahead or [])[:free]
    if predicted:
        known, fresh = torch.tensor(predicted, device=device), start[: len(predicted)]
        # No step uses the last row of the noise: the last step of a block renoises nothing.
        kept = noise.canvases[-1][: len(predicted)] >= int(PREDICTION_NOISE * vocab_size)
        start = torch.cat([known.where(kept, fresh), start[len(predicted) :]])
    if sampling.suffix:
        suffix = torch.tensor(sampling.suffix, device=device)
        start = torch.cat([start[: -len(suffix)], suffix])
    figures = None
    if predicted:
        unknown = [-1] * (width - len(predicted) - len(sampling.suffix))
        draft = [*predicted, *unknown, *sampling.suffix]
        figures = StepFigures(draft, steps=0, stable_steps=0, entropies=[])
    thoughts, cut, banned = sequence.thoughts, None, list(sampling.banned_tokens)
    if thoughts is not None:
        state = thoughts.after(sequence.thought, ahead or [])
        cut = partial(thoughts.cut, state)
        if thoughts.is_over(state):
            banned.append(thoughts.opener)
    room = sequence.request.max_tokens - len(answer)
    constraint: CanvasConstraint | FrontierConstraint | None = None
    match rules:
        case Projector():
            constraint = CanvasConstraint.behind(rules, answer, room, width)
        case GrammarRules():
            constraint = FrontierConstraint(rules, answer, min(width, room))
    return Canvas(
        sampling,
        sampler,
        noise,
        _biases(sequence.request, answer, ends, banned, width, vocab_size, device),
        prefix=None,
        suffix=suffix,
        constraint=constraint,
        tokens=start,
        figures=figures,
        cut=cut,
    )


class Conditioned(Protocol):
    """A canvas of any kind, as far as its self-conditioning is concerned."""

    soft_embeddings: Tensor | None  # [C, D]; None before the first step

    @property
    def width(self) -> int:
        """Returns the number of positions, C."""


def self_conditioning(canvases: Iterable[Conditioned], like: Tensor) -> Tensor | None:
    """Returns the soft embeddings [R, D] that condition the canvases' next step.

    They are zeros for a canvas before its first step. Returns None if that is true of all canvases.
    `like` [D] has the hidden size, dtype and device.
    """
    canvases = list(canvases)
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
    request: GenerateRequest,
    answer: list[int],
    ends: Iterable[int],
    banned_tokens: Iterable[int],
    width: int,
    vocab_size: int,
    device: torch.device,
) -> list[Bias]:
    """Returns how the request changes a canvas' logits, given its `answer` before the canvas.

    `ends` are the tokens that cannot come before the answer has its `min_tokens`. `banned_tokens`
    cannot come at all.
    """
    biases, sampling, factors = [], request.sampling, None
    added = dict(sampling.logit_bias)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, times in Counter(answer).items():
            penalty = sampling.presence_penalty + times * sampling.frequency_penalty
            added[token] = added.get(token, 0.0) - penalty
    added.update(dict.fromkeys(banned_tokens, _BANNED))
    if sampling.repetition_penalty != 1:
        present = dict.fromkeys([*request.prompt, *answer], sampling.repetition_penalty)
        factors = _vector(present, vocab_size, device, default=1.0)
    if factors is not None or any(added.values()):
        biases.append(Bias(slice(0, width), _vector(added, vocab_size, device), factors))
    # At so many positions the answer may not end.
    early = min(sampling.min_tokens - len(answer), width)
    banned = dict.fromkeys((token for token in ends if token < vocab_size), _BANNED)
    if early > 0 and banned:
        biases.append(Bias(slice(0, early), _vector(banned, vocab_size, device)))
    return biases


def _vector(
    values: dict[int, float], size: int, device: torch.device, default: float = 0.0
) -> Tensor:
    """Returns [size] float32 on `device`, with the default at every index without a value."""
    vector = torch.full((size,), default)
    vector[list(values)] = torch.tensor(list(values.values()), dtype=torch.float32)
    return vector.to(device)
