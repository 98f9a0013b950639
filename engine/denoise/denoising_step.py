"""The second half of a denoising step: from hidden states to where the canvases stand next.

The first half is the model's pass. Owns no state but whether Triton's kernels run here; a canvas'
is the canvas' own. The reference is `_denoising_step` in transformers'
`DiffusionGemmaGenerationMixin`.

Letters: N canvases of a pass, C positions of the widest, R of all together, D hidden size.
"""

import logging

import torch
from torch import Tensor

from engine.denoise.canvas import Canvas, CanvasRows
from engine.denoise.sampler import (
    accept,
    converged,
    counted_positions,
    mean_entropy,
    nearly_converged,
    stable_steps,
)
from engine.messages import TokenLogprobs
from engine.model.diffusion_gemma import DiffusionGemma
from engine.schedule.sequence import StepResult
from engine.tail.logprobs import logprobs
from engine.tail.truncated_draw import truncated_draw
from engine.tail.vocab_tail import Bias, TailResult, draw, triton_vocab_tail, vocab_tail

logger = logging.getLogger(__name__)


class DenoisingStep:
    """What follows the model's pass, with the model's vocabulary."""

    def __init__(self, model: DiffusionGemma) -> None:
        self._model = model
        self._kernels = model.device.type == "cuda"
        if self._kernels:
            self._try_kernels()

    def run(self, hidden: Tensor, canvases: list[Canvas]) -> list[StepResult]:
        """Move the canvases on by what the model gave for their rows, hidden states [R, D].

        The device is waited for once, for the stopping rule; and again for the log-probabilities
        of a finished block and for truncated draws, where a request asks for them. Canvases change
        last, so that the step can be run again if it fails.
        """
        rows = CanvasRows([canvas.width for canvas in canvases])
        samplers = [canvas.sampler for canvas in canvases]
        temperatures = rows.filled(
            [canvas.temperature for canvas in canvases], hidden.device
        )  # [R]
        biases = _shifted_biases(canvases, rows)
        tail = self._vocab_tail(hidden, temperatures, canvases, biases)
        self._fix_suffixes(tail, canvases, rows)
        argmax, entropy = rows.padded(tail.argmax, -1), rows.padded(tail.entropy, 0.0)
        counted = counted_positions(argmax, samplers)
        stable = stable_steps(
            argmax,
            rows.padded(torch.cat([canvas.argmax for canvas in canvases]), -1),
            torch.stack([canvas.stable for canvas in canvases]),
            counted,
        )
        mean = mean_entropy(entropy, rows.widths, counted)
        done = converged(stable, mean, samplers)
        nearly = nearly_converged(mean, samplers)
        report = torch.cat([done[:, None], nearly[:, None], argmax], dim=1).tolist()  # the one sync
        steps = []
        for canvas, place, (is_done, is_nearly, *draft) in zip(
            canvases, rows.slices, report, strict=True
        ):
            is_done = bool(is_done) or canvas.step_index + 1 == canvas.sampler.max_denoising_steps
            steps.append(
                StepResult(
                    draft[: canvas.width],
                    done=is_done,
                    nearly=bool(is_nearly),
                    logprobs=self._logprobs(hidden, tail, canvas, place) if is_done else None,
                )
            )
        if not all(step.done for step in steps):
            accepted = rows.flat(accept(entropy, samplers))
            moved = self._draw(tail, hidden, temperatures, accepted, canvases, rows, biases)
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

    def _vocab_tail(
        self,
        hidden: Tensor,
        temperatures: Tensor,
        canvases: list[Canvas],
        biases: list[Bias],
    ) -> TailResult:
        """Of all rows, whatever their canvases' requests ask for.

        The kernels shift exponents by the softcap, a bound that a bias breaks; a pass with a bias
        has the plain operations, whose running maximum is right for any logits.
        """
        model = self._model
        scales = {"softcap": model.config.softcap, "embedding_scale": model.embedding_scale}
        if self._kernels and not biases:
            least = min(canvas.temperature for canvas in canvases)
            return triton_vocab_tail(
                hidden, model.embedding, temperatures, **scales, least_temperature=least
            )
        return vocab_tail(hidden, model.embedding, temperatures, **scales, biases=biases)

    def _fix_suffixes(self, tail: TailResult, canvases: list[Canvas], rows: CanvasRows) -> None:
        """Positions that hold a suffix are certain of it, whatever the model says there."""
        for canvas, place in zip(canvases, rows.slices, strict=True):
            if canvas.suffix is not None:
                fixed = slice(place.stop - len(canvas.suffix), place.stop)
                tail.argmax[fixed] = canvas.suffix
                tail.entropy[fixed] = 0.0
                tail.soft_embeddings[fixed] = self._model.embed(canvas.suffix)

    def _logprobs(
        self, hidden: Tensor, tail: TailResult, canvas: Canvas, place: slice
    ) -> list[TokenLogprobs] | None:
        """Of a finished canvas' argmax, without its suffix; None if nobody asked for them."""
        if canvas.sampling.top_logprobs is None:
            return None
        free = slice(place.start, place.stop - len(canvas.sampling.suffix))
        return logprobs(
            hidden[free],
            self._model.embedding,
            tail.argmax[free],
            softcap=self._model.config.softcap,
            best=canvas.sampling.top_logprobs,
        ).messages()

    def _draw(
        self,
        tail: TailResult,
        hidden: Tensor,
        temperatures: Tensor,
        accepted: Tensor,
        canvases: list[Canvas],
        rows: CanvasRows,
        biases: list[Bias],
    ) -> Tensor:
        """The canvases' next tokens [R]: draws where accepted [R], new noise elsewhere.

        A greedy canvas is renoised with its starting noise. A suffix is neither.
        """
        embedding, softcap = self._model.embedding, self._model.config.softcap
        uniforms = torch.cat([canvas.noise.uniforms[canvas.step_index] for canvas in canvases])
        inputs = (hidden, embedding, temperatures, uniforms)
        sample = draw(tail, *inputs, accepted, softcap=softcap, biases=biases)
        for canvas, place in zip(canvases, rows.slices, strict=True):
            top_k, top_p = canvas.sampling.top_k, canvas.sampling.top_p
            if canvas.greedy or top_k == 1:
                sample[place] = tail.argmax[place]
            elif top_k or top_p < 1:
                some = place.start + accepted[place].nonzero().squeeze(1)
                sample[some] = truncated_draw(
                    *inputs, some, softcap=softcap, top_k=top_k, top_p=top_p, biases=biases
                )
        fresh = torch.cat(
            [
                canvas.noise.canvases[0 if canvas.greedy else canvas.step_index + 1]
                for canvas in canvases
            ]
        )
        moved = sample.where(accepted, fresh)
        for canvas, place in zip(canvases, rows.slices, strict=True):
            if canvas.suffix is not None:
                moved[place.stop - len(canvas.suffix) : place.stop] = canvas.suffix
        return moved

    def _try_kernels(self) -> None:
        """Run Triton's kernels once; where they do not run, the plain operations take over."""
        model = self._model
        softcap, embedding = model.config.softcap, model.embedding
        rows = model.dimensions.canvas_length
        hidden = torch.zeros(
            rows, model.dimensions.hidden_size, dtype=model.dtype, device=model.device
        )
        temperatures = torch.ones(rows, device=model.device)
        scales = {"softcap": softcap, "embedding_scale": model.embedding_scale}
        try:
            tail = triton_vocab_tail(
                hidden, embedding, temperatures, **scales, least_temperature=1.0
            )
            uniforms, wanted = torch.zeros_like(temperatures), temperatures > 0
            draw(tail, hidden, embedding, temperatures, uniforms, wanted, softcap=softcap)
            torch.cuda.synchronize(model.device)
        except Exception:  # whatever a compiler, a driver or a missing package may raise
            logger.warning("Triton kernels can't be used here, plain ones are", exc_info=True)
            self._kernels = False


def _shifted_biases(canvases: list[Canvas], rows: CanvasRows) -> list[Bias]:
    """The canvases' biases, of the pass' rows."""
    return [
        Bias(slice(place.start + bias.rows.start, place.start + bias.rows.stop), bias.values)
        for canvas, place in zip(canvases, rows.slices, strict=True)
        for bias in canvas.biases
    ]
