"""Corrects the drafts that a request's constraint does not allow, within a denoising step.

A draft is corrected when the model is sure of its first wrong token and of all tokens before it, or
when the block would be finished. Until then the model may still change its mind. So an answer that
comes to be allowed by itself is the one that would have come without a constraint. Tokens that the
model is sure of are kept, so that a mistake does not make the answer end before it.

Letters: C positions of a canvas, R positions (rows) of all canvases of a pass, D hidden size, V
vocabulary.
"""

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.constraint.projection import Projector
from engine.denoise.canvas import Canvas
from engine.model.diffusion_gemma import DiffusionGemma
from engine.tail.class_best import (
    ClassBest,
    TokenClasses,
    best_allowed,
    class_best,
    prepare_class_best,
)
from engine.tail.vocab_tail import Bias, TailResult


@dataclass(frozen=True)
class Correction:
    """What to do about a draft that the constraint does not allow."""

    canvas: list[int] | None = None  # the allowed draft; None while the model is not sure
    count: int = 0  # of its first tokens, which are right up to the correction and with it


class Corrections:
    """Corrects drafts with the model's logits. Keeps each constraint's classes on the device."""

    def __init__(self, model: DiffusionGemma) -> None:
        self._model = model
        self._classes: WeakKeyDictionary[Projector, TokenClasses] = WeakKeyDictionary()

    def prepare(self, projector: Projector) -> None:
        """Have the loops compiled that a correction needs, unless they are."""
        projector.prepare()
        prepare_class_best(self._model.device)

    def correction(
        self,
        canvas: Canvas,
        hidden: Tensor,
        tail: TailResult,
        rows: slice,
        draft: list[int],
        *,
        converged: bool,
        last: bool,
    ) -> Correction | None:
        """Returns what to do about a draft, or None if the constraint allows it.

        hidden is [R, D], and `rows` are the canvas' rows of it and of the tail. The draft is
        shorter than the canvas if the block is cut. `converged` says that the block would be
        finished, and `last` that it has no further step. Raises ValueError if the constraint has
        become too complex. Waits for the device if the draft is not allowed.
        """
        constraint = canvas.constraint
        assert constraint is not None
        right, positions = constraint.right_tokens(draft), min(len(draft), constraint.positions)
        if right == positions:
            return None
        known = len(constraint.fixed)
        # It is as sure as the sampler must be, which accepts tokens up to this sum of entropies.
        unsure = tail.entropy[rows][known : right + 1].sum()
        sure = converged or float(unsure) <= canvas.sampler.entropy_bound
        if not (sure or last):
            return Correction()
        kept = right if sure else known
        logits = _Logits(self._model, self._classes, hidden[rows], canvas.biases)
        corrected = constraint.corrected(draft, kept, logits)
        while last and (right := constraint.right_tokens(corrected)) < positions:
            corrected = constraint.corrected(corrected, right, logits)
        return Correction(corrected, kept + 1)

    def fix(self, canvas: Canvas, correction: Correction) -> None:
        """Fix the tokens up to the correction for the block's next steps."""
        assert canvas.constraint is not None
        assert canvas.soft_embeddings is not None
        assert canvas.figures is not None, "the canvas has had a step"
        assert correction.canvas is not None
        canvas.constraint.fix(correction.canvas, correction.count)
        canvas.prefix = torch.tensor(canvas.constraint.fixed, device=canvas.tokens.device)
        fixed = slice(0, len(canvas.prefix))
        draft = [*canvas.constraint.fixed, *canvas.figures.draft[len(canvas.prefix) :]]
        canvas.figures = replace(canvas.figures, draft=draft)
        canvas.tokens[fixed] = canvas.prefix
        canvas.soft_embeddings[fixed] = self._model.embed(canvas.prefix)


@dataclass(frozen=True)
class _Logits:
    """The logits of a canvas' positions, made as far as they are needed."""

    model: DiffusionGemma
    classes: WeakKeyDictionary[Projector, TokenClasses]
    hidden: Tensor  # [C, D]
    biases: list[Bias]

    def best_of_classes(self, projector: Projector, positions: slice) -> ClassBest:
        if projector not in self.classes:
            automaton = projector.automaton
            self.classes[projector] = TokenClasses(
                automaton.token_class, automaton.classes, self.hidden.device
            )
        return class_best(
            self.hidden[positions],
            self.model.embedding,
            self.classes[projector],
            softcap=self.model.config.softcap,
            biases=self._biases(positions),
        )

    def best(self, position: int, allowed: NDArray[np.bool_]) -> int:
        row = slice(position, position + 1)
        return best_allowed(
            self.hidden[row],
            self.model.embedding,
            allowed,
            softcap=self.model.config.softcap,
            biases=self._biases(row),
        )

    def _biases(self, positions: slice) -> list[Bias]:
        """Returns the biases of these positions, with their rows counted from the first of them."""
        moved = []
        for bias in self.biases:
            start = max(bias.rows.start, positions.start) - positions.start
            stop = min(bias.rows.stop, positions.stop) - positions.start
            if start < stop:
                moved.append(replace(bias, rows=slice(start, stop)))
        return moved
