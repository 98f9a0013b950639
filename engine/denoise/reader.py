"""Decisions: canvases of which everything is pinned but the labels' slots, and their read.

A canvas starts with noise at its slots. One denoising step is read: the labels' probabilities at
each slot. A canvas with more steps goes on as a greedy one does: where the sampler accepts a slot,
it gets its likeliest label, and its starting noise elsewhere; pinned positions are certain.

Letters: N canvases of a pass, C positions of a canvas, S slots of one canvas, R positions (rows) of
all canvases together, D hidden size.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.denoise.noise import block_noise
from engine.denoise.sampler import SamplerConfig, accept
from engine.messages import Read, SlotResult
from engine.model.diffusion_gemma import DiffusionGemma
from engine.schedule.reading import CanvasResult
from engine.schedule.sequence import Work
from engine.tail.label_read import LabelRead, Labels, VocabSums, label_read, vocab_sums
from engine.tail.vocab_tail import vocab_tail


@dataclass
class ReadCanvas:
    """The state of one of a decision's canvases, on the device."""

    read: Read
    steps: int  # how many denoising steps it has in all
    slots: Tensor  # [S] int64, positions
    labels: Labels
    noise: Tensor  # [S] int64, with which the slots start
    tokens: Tensor  # [C] int64
    soft_embeddings: Tensor | None = None  # [C, D] self-conditioning; None before the first step
    step_index: int = 0  # the number of denoising steps so far

    @property
    def width(self) -> int:
        """Returns the number of positions, C."""
        return self.tokens.shape[0]


@dataclass(frozen=True)
class CanvasStep:
    """The result of a canvas' step, and the state with which the canvas goes on."""

    result: CanvasResult
    tokens: Tensor  # [C] int64
    soft_embeddings: Tensor | None  # [C, D]

    def apply(self, canvas: ReadCanvas) -> None:
        """Advance the canvas. Until this is called, the step can be made again."""
        canvas.tokens, canvas.soft_embeddings = self.tokens, self.soft_embeddings
        canvas.step_index += 1


class Reader:
    """Makes decisions' canvases, and reads them from the hidden states of the model's pass."""

    def __init__(self, model: DiffusionGemma) -> None:
        self._model = model

    def canvases(
        self, work: Work, kept: dict[int, ReadCanvas], sampler: SamplerConfig
    ) -> list[ReadCanvas]:
        """Returns the canvases that a work reads: the `kept` ones, and new ones for the others."""
        reading, seed = work.sequence.reading, work.sequence.request.sampling.seed
        if reading is None:
            return []
        return [
            kept.get(number)
            or self._new_canvas(
                reading.read(number),
                seed=seed,
                sample=reading.sample(number),
                steps=reading.decision.steps,
                sampler=sampler,
            )
            for number in work.reads
        ]

    def _new_canvas(
        self, read: Read, *, seed: int, sample: int, steps: int, sampler: SamplerConfig
    ) -> ReadCanvas:
        """Returns a canvas before its first step.

        The noise depends on the seed, the sample and the position alone. So a question has the same
        noise whatever other reads its decision has.
        """
        model, dimensions = self._model, self._model.dimensions
        padding = sampler.padding
        if padding is None:
            padding = read.canvas[-1]
        length = dimensions.canvas_length
        pinned = read.canvas + [padding] * (length - len(read.canvas))
        tokens = torch.tensor(pinned, device=model.device)
        slots = torch.tensor([slot.position for slot in read.slots], device=model.device)
        noise = block_noise(
            seed,
            0,
            steps=1,
            canvas_length=length,
            vocab_size=dimensions.vocab_size,
            device=model.device,
            stream=sample,
        ).canvases[0][slots]
        labels = Labels.of([slot.labels for slot in read.slots], model.device)
        tokens = tokens.index_copy(0, slots, noise)
        return ReadCanvas(read, steps, slots, labels, noise, tokens)

    def read(
        self, hidden: Tensor, canvases: Several[ReadCanvas], sampler: SamplerConfig
    ) -> list[CanvasStep]:
        """Returns each canvas' step, given the hidden states [R, D] of their rows.

        Changes no canvas. The host waits for the device once for each canvas.
        """
        if not canvases:
            return []
        parts = torch.split(hidden, [canvas.width for canvas in canvases])
        at_slots = [
            part[canvas.slots] for part, canvas in zip(parts, canvases, strict=True)
        ]  # [S, D] each
        softcap, counts = self._model.config.softcap, [part.shape[0] for part in at_slots]
        whole = vocab_sums(torch.cat(at_slots), self._model.embedding, softcap=softcap)
        sums = zip(whole.log_total.split(counts), whole.argmax.split(counts), strict=True)  # type: ignore[no-untyped-call]  # torch's split has none
        return [
            self._step(canvas, slots, VocabSums(*each), sampler)
            for canvas, slots, each in zip(canvases, at_slots, sums, strict=True)
        ]

    def _step(
        self, canvas: ReadCanvas, hidden: Tensor, sums: VocabSums, sampler: SamplerConfig
    ) -> CanvasStep:
        """Returns a canvas' step, given the hidden states [S, D] of its slots."""
        model = self._model
        read = label_read(
            hidden, model.embedding, canvas.labels, sums, softcap=model.config.softcap
        )
        if canvas.step_index + 1 == canvas.steps:
            return CanvasStep(_result(canvas.read, hidden, read), canvas.tokens, None)
        # More steps than a block's have their temperatures between the same two.
        most_steps = max(canvas.steps, sampler.max_denoising_steps)
        sampler = replace(sampler, max_denoising_steps=most_steps)
        temperatures = hidden.new_full(
            (hidden.shape[0],), sampler.temperature(canvas.step_index), dtype=torch.float32
        )
        tail = vocab_tail(
            hidden,
            model.embedding,
            temperatures,
            softcap=model.config.softcap,
            embedding_scale=model.embedding_scale,
        )
        best = canvas.labels.of_slots.gather(1, read.probabilities.argmax(-1, keepdim=True))
        accepted = accept(tail.entropy[None], [sampler])[0]
        tokens = canvas.tokens.index_copy(
            0, canvas.slots, best.squeeze(1).where(accepted, canvas.noise)
        )
        soft = model.embed(canvas.tokens).index_copy(0, canvas.slots, tail.soft_embeddings)
        return CanvasStep(CanvasResult([], finite=_finite(hidden)), tokens, soft)


def _result(read: Read, hidden: Tensor, found: LabelRead) -> CanvasResult:
    """Returns the read of a canvas' last step. The host waits for the device here."""
    columns = [found.mass[:, None], found.argmax_is_label[:, None].double(), found.probabilities]
    rows = torch.cat(columns, 1).tolist()
    slots = [
        SlotResult(probabilities[: len(slot.labels)], mass, bool(is_label))
        for slot, (mass, is_label, *probabilities) in zip(read.slots, rows, strict=True)
    ]
    return CanvasResult(slots, finite=_finite(hidden))


def _finite(hidden: Tensor) -> bool:
    """Returns whether the slots' hidden states [S, D] are finite.

    The softcap hides infinite logits, which are made of infinite states. Labels' probabilities are
    NaN only if a state is.
    """
    return bool(hidden.sum(dtype=torch.float64).isfinite())
