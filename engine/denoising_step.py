"""The second half of a denoising step: from hidden states to where the canvases stand next.

The first half is the model's pass. Owns no state but whether Triton's kernels run here; a canvas'
is the canvas' own. The reference is `_denoising_step` in transformers'
`DiffusionGemmaGenerationMixin`.

Letters: N canvases of a pass, C positions of the widest, R of all together, D hidden size.
"""

import logging

import torch
from torch import Tensor

from engine.canvas import Canvas, Rows
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.vocab_tail import TailResult, draw, triton_vocab_tail, vocab_tail
from engine.sampler import (
    SamplerConfig,
    accept,
    converged,
    counted_positions,
    mean_entropy,
    nearly_converged,
    stable_steps,
)
from engine.sequence import Step

logger = logging.getLogger(__name__)

LEAST_TEMPERATURE = 1e-3  # a lower one is taken as this: float32 ends before it makes a difference


class DenoisingStep:
    """What follows the model's pass, with the model's vocabulary."""

    def __init__(self, model: DiffusionGemma) -> None:
        self._model = model
        self._kernels = model.embedding.device.type == "cuda"
        if self._kernels:
            self._try_kernels()

    def run(self, hidden: Tensor, canvases: list[Canvas], sampler: SamplerConfig) -> list[Step]:
        """Move the canvases on by what the model gave for their rows, hidden states [R, D].

        The device is waited for once, for the stopping rule. Canvases change last, so that the
        step can be run again if it fails.
        """
        each = [
            # At temperature 0 the schedule's own, for what is drawn with none of it.
            sampler.temperature(canvas.step_index)
            * max(canvas.temperature or 1.0, LEAST_TEMPERATURE)
            for canvas in canvases
        ]
        rows = Rows([canvas.tokens.shape[0] for canvas in canvases])
        widths = torch.tensor(rows.widths, device=hidden.device)  # [N]
        temperatures = torch.tensor(each, device=hidden.device)
        temperatures = temperatures.repeat_interleave(widths, output_size=hidden.shape[0])  # [R]
        tail = self._vocab_tail(hidden, temperatures, min(each))
        argmax, entropy = rows.padded(tail.argmax, -1), rows.padded(tail.entropy, 0.0)
        counted = counted_positions(argmax, sampler)
        stable = stable_steps(
            argmax,
            rows.padded(torch.cat([canvas.argmax for canvas in canvases]), -1),
            torch.stack([canvas.stable for canvas in canvases]),
            counted,
        )
        mean = mean_entropy(entropy, widths, counted)
        done = converged(stable, mean, sampler)
        nearly = nearly_converged(mean, sampler)
        report = torch.cat([done[:, None], nearly[:, None], argmax], dim=1).tolist()  # the one sync
        steps = []
        for canvas, width, (is_done, is_nearly, *draft) in zip(
            canvases, rows.widths, report, strict=True
        ):
            last = canvas.step_index + 1 == sampler.max_denoising_steps
            steps.append(Step(draft[:width], done=bool(is_done) or last, nearly=bool(is_nearly)))
        if not all(step.done for step in steps):
            accepted = rows.flat(accept(entropy, sampler.entropy_bound))
            moved = self._draw(tail, hidden, temperatures, accepted, canvases, rows)
            each_canvas = zip(
                canvases,
                torch.split(moved, rows.widths),
                torch.split(tail.argmax, rows.widths),
                torch.split(tail.soft_embeddings, rows.widths),
                stable,
                strict=True,
            )
            for canvas, *state in each_canvas:
                canvas.tokens, canvas.argmax, canvas.soft_embeddings, canvas.stable = state
                canvas.step_index += 1
        return steps

    def _draw(
        self,
        tail: TailResult,
        hidden: Tensor,
        temperatures: Tensor,
        accepted: Tensor,
        canvases: list[Canvas],
        rows: Rows,
    ) -> Tensor:
        """The canvases' next tokens [R]: draws where accepted [R], new noise elsewhere.

        At temperature 0 the one random thing is the starting noise, so it renoises too.
        """
        sample = draw(
            tail,
            hidden,
            self._model.embedding,
            temperatures,
            torch.cat([canvas.noise.uniforms[canvas.step_index] for canvas in canvases]),
            accepted,
            softcap=self._model.config.softcap,
        )
        greedy = [canvas.temperature == 0 for canvas in canvases]
        if any(greedy):
            best, drawn = torch.split(tail.argmax, rows.widths), torch.split(sample, rows.widths)
            triples = zip(greedy, best, drawn, strict=True)
            sample = torch.cat([b if is_greedy else d for is_greedy, b, d in triples])
        fresh = torch.cat(
            [
                canvas.noise.canvases[0 if is_greedy else canvas.step_index + 1]
                for canvas, is_greedy in zip(canvases, greedy, strict=True)
            ]
        )
        return sample.where(accepted, fresh)

    def _vocab_tail(
        self, hidden: Tensor, temperatures: Tensor, least_temperature: float
    ) -> TailResult:
        model = self._model
        scales = {"softcap": model.config.softcap, "embedding_scale": model.embedding_scale}
        if self._kernels:
            return triton_vocab_tail(
                hidden,
                model.embedding,
                temperatures,
                **scales,
                least_temperature=least_temperature,
            )
        return vocab_tail(hidden, model.embedding, temperatures, **scales)

    def _try_kernels(self) -> None:
        """Run Triton's kernels once; where they do not run, the plain operations take over."""
        embedding = self._model.embedding
        rows = self._model.config.canvas_length
        hidden = torch.zeros(
            rows, embedding.shape[1], dtype=embedding.dtype, device=embedding.device
        )
        temperatures = torch.ones(rows, device=embedding.device)
        try:
            tail = self._vocab_tail(hidden, temperatures, 1.0)
            uniforms, wanted = torch.zeros_like(temperatures), temperatures > 0
            softcap = self._model.config.softcap
            draw(tail, hidden, embedding, temperatures, uniforms, wanted, softcap=softcap)
            torch.cuda.synchronize(embedding.device)
        except Exception:  # whatever a compiler, a driver or a missing package may raise
            logger.warning("Triton kernels can't be used here, plain ones are", exc_info=True)
            self._kernels = False
