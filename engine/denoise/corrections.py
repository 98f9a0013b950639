"""Corrects the drafts that a request's constraint does not allow, within a denoising step.

A draft is corrected when the model is sure of its first wrong token and of all tokens before it, or
when the block would be finished. Until then the model may still change its mind. So an answer that
comes to be allowed by itself is the one that would have come without a constraint. Tokens that the
model is sure of are kept, so that a mistake does not make the answer end before it.

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

    def is_sure(self, canvas: Canvas, tail: TailResult, rows: slice, wrong: int) -> bool:
        """Returns whether the model is sure of a draft's tokens up to the position `wrong`.

        It is if their entropies are together within the sampler's bound, up to which it accepts
        tokens. `rows` are the canvas' rows of the tail. Waits for the device.
        """
        assert canvas.constraint is not None
        unsure = slice(len(canvas.constraint.fixed), wrong + 1)
        return float(tail.entropy[rows][unsure].sum()) <= canvas.sampler.entropy_bound

    def corrected(self, canvas: Canvas, hidden: Tensor, draft: list[int], kept: int) -> list[int]:
        """Returns the likeliest allowed canvas that begins with the draft's first `kept` tokens.

        hidden is [C, D], of the canvas' positions. Waits for the device.
        """
        constraint = canvas.constraint
        assert constraint is not None
        projector = constraint.projector
        biases = [
            replace(bias, rows=slice(max(bias.rows.start - kept, 0), bias.rows.stop - kept))
            for bias in canvas.biases
            if bias.rows.stop > kept
        ]
        if projector not in self._classes:
            automaton = projector.automaton
            self._classes[projector] = TokenClasses(
                automaton.token_class, automaton.classes, self._model.device
            )
        best = class_best(
            hidden[kept : constraint.positions],
            self._model.embedding,
            self._classes[projector],
            softcap=self._model.config.softcap,
            biases=biases,
        )
        return constraint.corrected(draft, kept, best)

    def fix(self, canvas: Canvas, draft: list[int], corrected: list[int]) -> None:
        """Fix the canvas' tokens up to the first correction for the block's next steps."""
        assert canvas.constraint is not None
        assert canvas.soft_embeddings is not None, "the canvas has had a step"
        canvas.constraint.fix(draft, corrected)
        canvas.prefix = torch.tensor(canvas.constraint.fixed, device=canvas.tokens.device)
        fixed = slice(0, len(canvas.prefix))
        canvas.tokens[fixed] = canvas.argmax[fixed] = canvas.prefix
        canvas.soft_embeddings[fixed] = self._model.embed(canvas.prefix)
