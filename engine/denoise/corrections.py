"""Corrects the drafts that a request's constraint does not allow, within a denoising step.

A draft is corrected when the model is sure of its first wrong token and of all tokens before it, or
when the block would be finished. Until then the model may still change its mind. So an answer that
comes to be allowed by itself is the one that would have come without a constraint.

Letters: R canvas positions (rows) of all canvases of a pass, D hidden size.
"""

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from engine.constraint.projection import Projector
from engine.denoise.canvas import Canvas
from engine.model.diffusion_gemma import DiffusionGemma
from engine.tail.class_best import TokenClasses, class_best
from engine.tail.vocab_tail import TailResult


class Corrections:
    """Corrects drafts with the model's logits. Keeps each constraint's classes on the device."""

    def __init__(self, model: DiffusionGemma) -> None:
        self._model = model
        self._classes: WeakKeyDictionary[Projector, TokenClasses] = WeakKeyDictionary()

    def due(self, canvas: Canvas, tail: TailResult, rows: slice, draft: list[int]) -> bool:
        """Returns whether the model is sure of a wrong draft, up to its first wrong token.

        It is if the entropies of these tokens are together within the sampler's bound, up to which
        it accepts tokens. `rows` are the canvas' rows of the tail. Waits for the device.
        """
        constraint = canvas.constraint
        assert constraint is not None
        unsure = slice(len(constraint.fixed), constraint.first_wrong(draft) + 1)
        return float(tail.entropy[rows][unsure].sum()) <= canvas.sampler.entropy_bound

    def corrected(self, canvas: Canvas, hidden: Tensor, draft: list[int]) -> list[int]:
        """Returns the likeliest canvas that the constraint allows. Waits for the device.

        hidden is [C, D], of the canvas' positions.
        """
        constraint = canvas.constraint
        assert constraint is not None
        first, projector = len(constraint.fixed), constraint.projector
        biases = [
            replace(bias, rows=slice(max(bias.rows.start - first, 0), bias.rows.stop - first))
            for bias in canvas.biases
            if bias.rows.stop > first
        ]
        if projector not in self._classes:
            automaton = projector.automaton
            self._classes[projector] = TokenClasses(
                automaton.token_class, automaton.classes, self._model.device
            )
        best = class_best(
            hidden[first : constraint.positions],
            self._model.embedding,
            self._classes[projector],
            softcap=self._model.config.softcap,
            biases=biases,
        )
        return constraint.corrected(draft, best)

    def fix(self, canvas: Canvas, draft: list[int], corrected: list[int]) -> None:
        """Fix the canvas' tokens up to the first correction for the block's next steps."""
        assert canvas.constraint is not None
        assert canvas.soft_embeddings is not None, "the canvas has had a step"
        canvas.constraint.fix(draft, corrected)
        canvas.prefix = torch.tensor(canvas.constraint.fixed, device=canvas.tokens.device)
        fixed = slice(0, len(canvas.prefix))
        canvas.tokens[fixed] = canvas.argmax[fixed] = canvas.prefix
        canvas.soft_embeddings[fixed] = self._model.embed(canvas.prefix)
