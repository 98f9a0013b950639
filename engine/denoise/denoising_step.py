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

from engine.denoise.canvas import Canvas, CanvasRows, joined
from engine.denoise.corrections import Correction, Corrections
from engine.denoise.noise import block_noise
from engine.denoise.sampler import accept
from engine.denoise.stopping import StepFigures
from engine.messages import StopReason, TokenLogprobs
from engine.model.diffusion_gemma import DiffusionGemma
from engine.schedule.sequence import StepResult
from engine.tail.logprobs import logprobs
from engine.tail.truncated_draw import triton_truncated_draw, truncated_draw
from engine.tail.vocab_tail import (
    Bias,
    TailResult,
    draw,
    triton_draw,
    triton_vocab_tail,
    vocab_tail,
)
from engine.weights.quantization import Kernel

logger = logging.getLogger(__name__)

GPU = "cuda"  # the type of the devices that have Triton's kernels


class DenoisingStep:
    """Turns the hidden states of the model's pass into the canvases' next state."""

    def __init__(self, model: DiffusionGemma) -> None:
        self._model = model
        self.corrections = Corrections(model)
        self._kernels = model.device.type == GPU
        # On a GPU everything is launched before the host waits, so that the GPU is never idle. On a
        # CPU, launching is computing, and nothing is drawn if all canvases are done.
        self._draws_ahead = self._kernels
        if self._kernels:
            self._try_kernels()

    @property
    def kernel(self) -> Kernel:
        """Returns whose kernels run: Triton's on a GPU on which they work, else PyTorch's."""
        return "triton" if self._kernels else "torch"

    def run(self, hidden: Tensor, canvases: list[Canvas]) -> list[StepResult]:
        """Advance the canvases by one step, given the hidden states [R, D] of their rows.

        Returns each canvas' result. If a canvas has outputs that are NaN or infinite, its result
        says so and means nothing else. The canvases stay unchanged if all of them are done. They
        change last, so that a step that failed can be run again.

        On a GPU the host waits for the device once, when everything has been launched, and copies
        one tensor. What drafts show besides the argmax canvas is part of it, if a request asks for
        drafts. The host waits again for the log-probabilities of a finished block, if a request
        asks for them, and for a draft that a request's constraint does not allow.
        """
        rows = CanvasRows.of(canvases)
        samplers = [canvas.sampler for canvas in canvases]
        temperatures = rows.filled(
            [canvas.temperature for canvas in canvases], hidden.device
        )  # [R]
        biases = _shifted_biases(canvases, rows)
        tail = self._vocab_tail(hidden, temperatures, canvases, rows, biases)
        self._fix_tokens(tail, canvases, rows)
        argmax, entropy = rows.padded(tail.argmax, -1), rows.padded(tail.entropy, 0.0)
        has_drafts = any(canvas.sampling.drafts_every for canvas in canvases)
        accepted = accept(entropy, samplers) if self._draws_ahead or has_drafts else None

        def next_tokens() -> Tensor:
            flat = rows.flat(accept(entropy, samplers) if accepted is None else accepted)
            return self._draw(tail, hidden, temperatures, flat, canvases, rows, biases)

        moved = next_tokens() if self._draws_ahead else None
        # float64 holds token ids exactly.
        columns = [_finite(hidden, tail, rows)[:, None].double(), argmax, entropy]
        if has_drafts and accepted is not None:
            columns.append(accepted)
        report = to_host(torch.cat(columns, dim=1))
        widest = argmax.shape[1]
        steps = []
        figures: list[StepFigures | None] = []  # None if the canvas' outputs are not finite
        fixes: list[tuple[Canvas, Correction]] = []
        for canvas, span, (is_finite, *numbers) in zip(canvases, rows.slices, report, strict=True):
            draft = list(map(int, numbers[: canvas.width]))
            entropies = numbers[widest:][: canvas.width]
            watched = bool(canvas.sampling.drafts_every)
            block, closes = draft, False
            is_last = canvas.step_index + 1 == canvas.sampler.max_denoising_steps
            seen = canvas.next_figures(draft, entropies) if is_finite else None
            figures.append(seen)
            rule = canvas.sampler.stopping_rule
            stopped: StopReason | None = None if seen is None else rule.reason(seen)
            correction = fault = None
            if canvas.cut is not None:
                block, closes = canvas.cut(draft)
            if canvas.constraint is not None and is_finite:
                try:
                    correction = self.corrections.correction(
                        canvas,
                        hidden,
                        tail,
                        span,
                        block,
                        converged=stopped is not None,
                        last=is_last,
                    )
                except ValueError as error:
                    fault = str(error)
            is_nearly = seen is not None and correction is None and rule.nearly(seen)
            if correction is not None:
                stopped = None
                if is_last and correction.canvas is not None:
                    block = correction.canvas
                    if canvas.cut is not None:
                        block, cuts = canvas.cut(block)
                        closes = closes or cuts
                elif correction.canvas is not None:
                    fixes.append((canvas, correction))
            elif closes:
                is_nearly = False
                if len(block) == 1:  # the closing mark alone does not depend on the canvas
                    stopped = stopped or "closed"
            if is_last and stopped is None:
                stopped = "limit"
            if stopped is not None and block is not draft:
                tail.argmax[span][: len(block)] = torch.tensor(block, device=hidden.device)
            steps.append(
                StepResult(
                    block,
                    stopped,
                    nearly=is_nearly,
                    logprobs=self._logprobs(hidden, tail, canvas, span) if stopped else None,
                    finite=bool(is_finite),
                    corrected=correction is not None and correction.canvas is not None,
                    fault=fault,
                    accepted=[*map(bool, numbers[2 * widest :][: canvas.width])]
                    if watched
                    else None,
                    entropy=seen.mean_entropy if watched and seen is not None else 0.0,
                    thought_closed=closes,
                )
            )
        if not all(step.done for step in steps):
            each_canvas = zip(
                canvases,
                figures,
                torch.split(next_tokens() if moved is None else moved, rows.widths),
                torch.split(tail.soft_embeddings, rows.widths),
                strict=True,
            )
            for canvas, seen, tokens, soft_embeddings in each_canvas:
                canvas.figures = seen
                canvas.tokens, canvas.soft_embeddings = tokens, soft_embeddings
                canvas.step_index += 1
        for canvas, correction in fixes:
            self.corrections.fix(canvas, correction)
        return steps

    def _vocab_tail(
        self,
        hidden: Tensor,
        temperatures: Tensor,
        canvases: list[Canvas],
        rows: CanvasRows,
        biases: list[Bias],
    ) -> TailResult:
        """Returns the statistics of all rows, whatever their canvases' requests ask for."""
        model = self._model
        scales = {"softcap": model.config.softcap, "embedding_scale": model.embedding_scale}
        if self._kernels:
            least = [
                (span, canvas.temperature)
                for span, canvas in zip(rows.slices, canvases, strict=True)
            ]
            return triton_vocab_tail(
                hidden,
                model.embedding,
                temperatures,
                **scales,
                least_temperatures=least,
                biases=biases,
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
        uniforms = joined([canvas.noise.uniforms[canvas.step_index] for canvas in canvases])
        inputs = (hidden, embedding, temperatures, uniforms)
        draws = triton_draw if self._kernels else draw
        sample = draws(tail, *inputs, accepted, softcap=softcap, biases=biases)
        for canvas, span in zip(canvases, rows.slices, strict=True):
            sampling = canvas.sampling
            if canvas.greedy or sampling.top_k == 1:
                sample[span] = tail.argmax[span]
            elif sampling.top_k or sampling.top_p < 1 or sampling.min_p:
                if self._kernels:
                    triton_truncated_draw(
                        *inputs,
                        accepted,
                        sample,
                        span,
                        softcap=softcap,
                        top_k=sampling.top_k,
                        top_p=sampling.top_p,
                        min_p=sampling.min_p,
                        biases=biases,
                    )
                    continue
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
        fresh = joined(
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
        uniforms, wanted = torch.zeros_like(temperatures), temperatures > 0
        # Of three canvases, one is cold and one has a bias.
        third, vector = rows // 3, torch.ones(model.dimensions.vocab_size, device=model.device)
        biases = [Bias(slice(2 * third, rows), vector, vector), Bias(slice(rows - 1, rows), vector)]
        inputs = (hidden, embedding, temperatures)
        try:
            tail = triton_vocab_tail(
                *inputs,
                softcap=softcap,
                embedding_scale=model.embedding_scale,
                least_temperatures=[(slice(0, third), 1e-3), (slice(third, rows), 1.0)],
                biases=biases,
            )
            drawn = triton_draw(tail, *inputs, uniforms, wanted, softcap=softcap, biases=biases)
            triton_truncated_draw(
                *inputs,
                uniforms,
                wanted,
                drawn,
                slice(0, rows),
                softcap=softcap,
                top_k=9,
                top_p=0.9,
            )
            block_noise(
                0,
                0,
                steps=1,
                canvas_length=rows,
                vocab_size=model.dimensions.vocab_size,
                device=model.device,
                kernel="triton",
            )
            torch.cuda.synchronize(model.device)
        except Exception:  # a compiler, a driver or a missing package may raise anything
            logger.warning(
                "Triton's kernels can't be used here, plain operations are used instead",
                exc_info=True,
            )
            self._kernels = False


def to_host(tensor: Tensor) -> list[list[float]]:
    """Returns a tensor's numbers. The host waits for the device here, and nowhere else."""
    numbers: list[list[float]] = tensor.tolist()
    return numbers


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
