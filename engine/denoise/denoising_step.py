"""The second half of a denoising step: from hidden states to the canvases' next state.

The first half is the model's pass. The only state held here is whether Triton's kernels run; a
canvas holds its own state. The reference is `_denoising_step` in transformers'
`DiffusionGemmaGenerationMixin`.

Letters: N canvases of a pass, C positions of the widest canvas, R positions (rows) of all canvases
together, D hidden size.
"""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from engine.denoise.canvas import Canvas, CanvasRows
from engine.denoise.corrections import Correction, Corrections
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
    """Turns the hidden states of the model's pass into the canvases' next state."""

    def __init__(self, model: DiffusionGemma) -> None:
        self._model = model
        self._corrections = Corrections(model)
        self._kernels = model.device.type == "cuda"
        if self._kernels:
            self._try_kernels()

    def run(self, hidden: Tensor, canvases: list[Canvas]) -> list[StepResult]:
        """Advance the canvases by one step, given the hidden states [R, D] of their rows.

        Returns each canvas' result. If a canvas has outputs that are NaN or infinite, its result
        says so and means nothing else. The canvases stay unchanged if all of them are done. They
        change last, so that a step that failed can be run again.

        The host waits for the device once, for the stopping rule. It waits again for the
        log-probabilities of a finished block and for truncated draws, if a request asks for them,
        and for a draft that a request's constraint does not allow.
        """
        rows = CanvasRows([canvas.width for canvas in canvases])
        samplers = [canvas.sampler for canvas in canvases]
        temperatures = rows.filled(
            [canvas.temperature for canvas in canvases], hidden.device
        )  # [R]
        biases = _shifted_biases(canvases, rows)
        tail = self._vocab_tail(hidden, temperatures, canvases, biases)
        self._fix_tokens(tail, canvases, rows)
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
        finite = _finite(hidden, tail, rows)
        flags = [flag[:, None] for flag in (done, nearly, finite)]
        report = torch.cat([*flags, argmax], dim=1).tolist()  # the host waits here
        steps = []
        fixes: list[tuple[Canvas, Correction]] = []
        for canvas, span, (is_done, is_nearly, is_finite, *padded) in zip(
            canvases, rows.slices, report, strict=True
        ):
            draft = padded[: canvas.width]
            is_last = canvas.step_index + 1 == canvas.sampler.max_denoising_steps
            is_done, is_nearly, is_finite = map(bool, (is_done, is_nearly, is_finite))
            correction = fault = None
            if canvas.constraint is not None and is_finite:
                try:
                    correction = self._corrections.correction(
                        canvas, hidden, tail, span, draft, converged=is_done, last=is_last
                    )
                except ValueError as error:
                    fault = str(error)
            if correction is not None:
                is_done = is_nearly = False
                if is_last and correction.canvas is not None:
                    draft = correction.canvas
                    tail.argmax[span] = torch.tensor(draft, device=hidden.device)
                elif correction.canvas is not None:
                    fixes.append((canvas, correction))
            is_done = is_done or is_last
            steps.append(
                StepResult(
                    draft,
                    done=is_done,
                    nearly=is_nearly,
                    logprobs=self._logprobs(hidden, tail, canvas, span) if is_done else None,
                    finite=is_finite,
                    corrected=correction is not None and correction.canvas is not None,
                    fault=fault,
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
        for canvas, correction in fixes:
            self._corrections.fix(canvas, correction)
        return steps

    def _vocab_tail(
        self,
        hidden: Tensor,
        temperatures: Tensor,
        canvases: list[Canvas],
        biases: list[Bias],
    ) -> TailResult:
        """Returns the statistics of all rows, whatever their canvases' requests ask for.

        The kernels shift exponents by the softcap, which biased logits can exceed. A pass with a
        bias therefore uses the plain operations, whose running maximum is right for any logits.
        """
        model = self._model
        scales = {"softcap": model.config.softcap, "embedding_scale": model.embedding_scale}
        if self._kernels and not biases:
            least = min(canvas.temperature for canvas in canvases)
            return triton_vocab_tail(
                hidden, model.embedding, temperatures, **scales, least_temperature=least
            )
        return vocab_tail(hidden, model.embedding, temperatures, **scales, biases=biases)

    def _fix_tokens(self, tail: TailResult, canvases: list[Canvas], rows: CanvasRows) -> None:
        """Make fixed positions certain of their tokens, whatever the model predicts."""
        for canvas, span in zip(canvases, rows.slices, strict=True):
            for fixed, tokens in canvas.fixed:
                tail.argmax[span][fixed] = tokens
                tail.entropy[span][fixed] = 0.0
                tail.soft_embeddings[span][fixed] = self._model.embed(tokens)

    def _logprobs(
        self, hidden: Tensor, tail: TailResult, canvas: Canvas, span: slice
    ) -> list[TokenLogprobs] | None:
        """Returns the log-probabilities of a finished canvas' argmax, without its suffix.

        Returns None if the request did not ask for them.
        """
        if canvas.sampling.top_logprobs is None:
            return None
        free = slice(span.start, span.stop - len(canvas.sampling.suffix))
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
        """Returns the canvases' next tokens [R]: draws where `accepted` [R], new noise elsewhere.

        A greedy canvas takes its argmax and is renoised with its starting noise. Fixed
        tokens are neither drawn nor renoised.
        """
        embedding, softcap = self._model.embedding, self._model.config.softcap
        uniforms = torch.cat([canvas.noise.uniforms[canvas.step_index] for canvas in canvases])
        inputs = (hidden, embedding, temperatures, uniforms)
        sample = draw(tail, *inputs, accepted, softcap=softcap, biases=biases)
        for canvas, span in zip(canvases, rows.slices, strict=True):
            sampling = canvas.sampling
            if canvas.greedy or sampling.top_k == 1:
                sample[span] = tail.argmax[span]
            elif sampling.top_k or sampling.top_p < 1 or sampling.min_p:
                drawn = span.start + accepted[span].nonzero().squeeze(1)
                sample[drawn] = truncated_draw(
                    *inputs,
                    drawn,
                    softcap=softcap,
                    top_k=sampling.top_k,
                    top_p=sampling.top_p,
                    min_p=sampling.min_p,
                    biases=biases,
                )
        fresh = torch.cat(
            [
                canvas.noise.canvases[0 if canvas.greedy else canvas.step_index + 1]
                for canvas in canvases
            ]
        )
        moved = sample.where(accepted, fresh)
        for canvas, span in zip(canvases, rows.slices, strict=True):
            for fixed, tokens in canvas.fixed:
                moved[span][fixed] = tokens
        return moved

    def _try_kernels(self) -> None:
        """Run Triton's kernels once. If they fail, the plain operations are used from then on."""
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
        except Exception:  # a compiler, a driver or a missing package may raise anything
            logger.warning(
                "Triton's kernels can't be used here, plain operations are used instead",
                exc_info=True,
            )
            self._kernels = False


def _finite(hidden: Tensor, tail: TailResult, rows: CanvasRows) -> Tensor:
    """Returns which canvases have only finite outputs, [N] bool.

    A logit that is NaN makes the whole row's soft embedding NaN. An infinite logit is invisible
    behind the softcap, but is made of an infinite hidden state or an infinite embedding. A sum is
    finite if and only if all of its terms are: in float64 it cannot overflow.
    """
    sums = hidden.sum(-1, dtype=torch.float64)
    sums += tail.soft_embeddings.sum(-1, dtype=torch.float64)
    return rows.padded(sums, 0.0).sum(-1).isfinite()


def _shifted_biases(canvases: list[Canvas], rows: CanvasRows) -> list[Bias]:
    """Returns the canvases' biases, shifted to the rows of the pass."""
    return [
        replace(bias, rows=slice(span.start + bias.rows.start, span.start + bias.rows.stop))
        for canvas, span in zip(canvases, rows.slices, strict=True)
        for bias in canvas.biases
    ]
