"""The algorithm: prefill, denoising steps, commit. Turns a `Pass` into a `PassResult`.

Owns every tensor of a running sequence. The reference is `DiffusionGemmaGenerationMixin.generate`
in transformers; the parity tests hold whole generations token by token against it. Knows no
schedule: who runs and when is the scheduler's to say, how far an answer is the sequence's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kv_cache import KVCache
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.vocab_tail import vocab_tail
from engine.noise import BlockNoise, block_noise
from engine.sampler import SamplerConfig, accept, converged, stable_steps
from engine.sequence import Denoise, Encode, Pass, PassResult, Sequence


@dataclass
class Canvas:
    """The block in the making, on the device."""

    noise: BlockNoise
    tokens: Tensor  # [C] int64
    argmax: Tensor  # [C] int64; -1 before the first step
    stable: Tensor  # [] int64, steps for which argmax has stayed the same
    soft_embeddings: Tensor | None = None  # [C, D] self-conditioning; None before the first step


class Denoiser:
    """The model with the state of the one sequence that it works on."""

    def __init__(
        self,
        model: DiffusionGemma,
        sampler: SamplerConfig,
        *,
        context_length: int,
        prefill_chunk: int,
    ) -> None:
        """Allocates the KV cache for `context_length` tokens and a canvas that may cross it."""
        self.model = model
        self.sampler = sampler
        self.context_length = context_length
        self._device = model.embedding.device
        canvas_length = model.config.canvas_length
        self._cache = KVCache(
            model.config.layers,
            capacity=context_length,
            pass_tokens=max(canvas_length, min(prefill_chunk, context_length)),
            dtype=model.embedding.dtype,
            device=self._device,
        )
        self._sequence: Sequence | None = None
        self._canvas: Canvas | None = None

    @torch.inference_mode()
    def run(self, work: Pass) -> PassResult:
        """One pass. A sequence other than the last one starts from an empty cache."""
        if work.sequence is not self._sequence:
            self._sequence, self._canvas = work.sequence, None
            self._cache.clear()
        match work:
            case Encode(tokens=tokens):
                self.model.encode(torch.tensor(tokens, device=self._device), self._cache)
                return PassResult()
            case Denoise(sequence=sequence):
                return self._denoise(sequence)

    def _denoise(self, sequence: Sequence) -> PassResult:
        """One denoising step; the device is waited for once, for the stopping rule."""
        step = sequence.step_index
        canvas = self._canvas if self._canvas and step else self._new_canvas(sequence)
        hidden = self.model.decode(canvas.tokens, canvas.soft_embeddings, self._cache)
        greedy = sequence.request.temperature == 0
        scale = 1.0 if greedy else sequence.request.temperature
        tail = vocab_tail(
            hidden,
            self.model.embedding,
            canvas.noise.uniforms[step],
            softcap=self.model.config.softcap,
            temperature=self.sampler.temperature(step) * scale,
            embedding_scale=self.model.embedding_scale,
        )
        canvas.stable = stable_steps(tail.argmax, canvas.argmax, canvas.stable)
        canvas.argmax = tail.argmax
        last = step + 1 == self.sampler.max_denoising_steps
        if last or bool(converged(canvas.stable, tail.entropy, self.sampler)):  # the one sync
            self._canvas = None
            return PassResult(canvas=tail.argmax.tolist())
        # At temperature 0 the one random thing is the starting noise, so it renoises too.
        drawn, fresh = (
            (tail.argmax, canvas.noise.canvases[0])
            if greedy
            else (tail.sample, canvas.noise.canvases[step + 1])
        )
        canvas.tokens = torch.where(accept(tail.entropy, self.sampler.entropy_bound), drawn, fresh)
        canvas.soft_embeddings = tail.soft_embeddings
        self._canvas = canvas
        return PassResult()

    def _new_canvas(self, sequence: Sequence) -> Canvas:
        noise = block_noise(
            sequence.request.seed,
            sequence.block_index,
            steps=self.sampler.max_denoising_steps,
            canvas_length=self.model.config.canvas_length,
            vocab_size=self.model.config.vocab_size,
            device=self._device,
        )
        start = noise.canvases[0]
        return Canvas(
            noise,
            tokens=start,
            argmax=torch.full_like(start, -1),
            stable=torch.zeros((), dtype=torch.int64, device=self._device),
        )
