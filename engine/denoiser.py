"""The algorithm: prefill, denoising steps, commit. Turns a `Pass` into a `PassResult`.

Owns every tensor of the running sequences. The reference is transformers'
`DiffusionGemmaGenerationMixin.generate`, against which the parity tests hold whole generations
token by token. Knows no schedule: who runs and when is the scheduler's to say, how far an answer
is the sequence's.

Letters: N canvases of a pass, C canvas positions, D hidden size.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kv_cache import KVCache, Snapshot
from engine.model.diffusion_gemma import DiffusionGemma, Segment
from engine.model.vocab_tail import TailResult, draw, triton_vocab_tail, vocab_tail
from engine.noise import BlockNoise, block_noise
from engine.prefix_cache import PrefixCache
from engine.sampler import SamplerConfig, accept, converged, counted_positions, stable_steps
from engine.sequence import Pass, PassResult, Sequence

logger = logging.getLogger(__name__)

# How far a kept prefix can be cut back where sliding layers have lost its beginning. The next turn
# of a conversation differs from the last prompt in how the model's turn begins, by ten tokens.
SLACK_TOKENS = 64


@dataclass
class Canvas:
    """The block in the making, on the device."""

    noise: BlockNoise
    tokens: Tensor  # [C] int64
    argmax: Tensor  # [C] int64; -1 before the first step
    stable: Tensor  # [] int64, steps for which argmax has stayed the same
    soft_embeddings: Tensor | None = None  # [C, D] self-conditioning; None before the first step


@dataclass
class Slot:
    """What a running sequence has on the device."""

    cache: KVCache
    tokens: list[int]  # that the cache holds
    canvas: Canvas | None = None


class Denoiser:
    """The model with the state of the sequences that it works on."""

    def __init__(
        self,
        model: DiffusionGemma,
        sampler: SamplerConfig,
        *,
        context_length: int,
        prefill_chunk: int,
        max_active: int,
        prefix_cache_bytes: int = 0,
    ) -> None:
        """Allocates `max_active` KV caches for `context_length` tokens and a canvas behind them.

        Up to `prefix_cache_bytes` are taken beside them, as requests come, to keep prefixes.
        """
        self.model = model
        self.sampler = sampler
        self.context_length = context_length
        self.vocab_size = model.config.vocab_size
        self._device = model.embedding.device
        self._free = [
            KVCache(
                model.config.layers,
                capacity=context_length,
                pass_tokens=min(prefill_chunk, context_length) + model.config.canvas_length,
                dtype=model.embedding.dtype,
                device=self._device,
                slack=SLACK_TOKENS,
            )
            for _ in range(max_active)
        ]
        self._prefixes: PrefixCache[Snapshot] = PrefixCache(prefix_cache_bytes)
        self._slots: dict[Sequence, Slot] = {}
        self._kernels = self._device.type == "cuda"
        if self._kernels:
            self._try_kernels()

    @torch.inference_mode()
    def run(self, works: Pass) -> PassResult:
        """One pass through the weights for everything in it."""
        segments, canvases = [], []
        for work in works:
            slot = self._slots[work.sequence]
            if work.tokens:
                tokens = torch.tensor(work.tokens, device=self._device)
                segments.append(Segment(slot.cache, tokens, causal=True))
            if work.denoise:
                if slot.canvas is None:
                    slot.canvas = self._new_canvas(work.sequence)
                canvases.append(slot.canvas)
                start = len(work.tokens)
                segments.append(Segment(slot.cache, slot.canvas.tokens, causal=False, start=start))
        hidden = self.model.run(segments, self._soft_embeddings(canvases))
        stepped = [work.sequence for work in works if work.denoise]
        finished = self._sample(hidden, stepped, canvases) if stepped else {}
        # Only now: a pass that ran out of memory has changed nothing and may be run again.
        for work in works:
            slot = self._slots[work.sequence]
            slot.cache.advance(len(work.tokens))
            slot.tokens += work.tokens
            if work.sequence in finished:
                slot.canvas = None
            if work.tokens and len(slot.tokens) in work.sequence.checkpoints:
                self._keep(slot)
        return [finished.get(work.sequence) for work in works]

    def start(self, sequence: Sequence) -> int:
        """Give the sequence a free KV cache, until it is released.

        Returns how many tokens of its prompt the cache holds already, from an earlier request.
        """
        cache, match = self._free.pop(), self._prefixes.longest(sequence.request.prompt)
        length = 0 if match is None else match.length
        if match is not None:
            cache.restore(match.kept, length)
        self._slots[sequence] = Slot(cache, sequence.request.prompt[:length])
        return length

    def release(self, sequence: Sequence) -> None:
        """The sequence has ended; it need not have started. Its KV cache is free."""
        slot = self._slots.pop(sequence, None)
        if slot is not None:
            self._keep(slot)
            slot.cache.clear()
            self._free.append(slot.cache)

    def forget_prefixes(self) -> bool:
        """Give up the memory of all kept prefixes; whether there was any."""
        some = len(self._prefixes) > 0
        self._prefixes.clear()
        return some

    def _keep(self, slot: Slot) -> None:
        """Keep what the slot's cache holds for later requests, if there is memory for it."""
        cache = slot.cache
        if slot.tokens and self._prefixes.make_room(
            slot.tokens, nbytes=cache.stored_nbytes, shortest=cache.shortest
        ):
            try:
                self._prefixes.add(slot.tokens, cache.snapshot())
            except torch.OutOfMemoryError:
                logger.warning("no memory to keep a prefix of %d tokens", len(slot.tokens))
                self._prefixes.clear()

    def _sample(
        self, hidden: Tensor, sequences: list[Sequence], canvases: list[Canvas]
    ) -> dict[Sequence, list[int]]:
        """The second half of a denoising step: hidden states [N * C, D] move the canvases on.

        Gives the argmax canvases of those that are finished. The device is waited for once, for
        the stopping rule. Canvases change last, so that the step can be run again if it fails.
        """
        each = [
            # At temperature 0 the schedule's own, for what is drawn with none of it.
            self.sampler.temperature(sequence.step_index) * (sequence.request.temperature or 1.0)
            for sequence in sequences
        ]
        width = self.model.config.canvas_length
        temperatures = torch.tensor(each, device=self._device).repeat_interleave(width)  # [N * C]
        tail = self._vocab_tail(hidden, temperatures, min(each))
        argmax, entropy = tail.argmax.view(-1, width), tail.entropy.view(-1, width)
        stable, done = self._stopping_rule(argmax, entropy, canvases)
        finished = {}
        report = torch.cat([done[:, None], argmax], dim=1).tolist()  # the one sync
        for sequence, (is_done, *tokens) in zip(sequences, report, strict=True):
            if is_done or sequence.step_index + 1 == self.sampler.max_denoising_steps:
                finished[sequence] = tokens
        if len(finished) < len(canvases):
            accepted = accept(entropy, self.sampler.entropy_bound)
            drawn, fresh = self._draw(tail, hidden, temperatures, accepted, sequences, canvases)
            moved = drawn.where(accepted, fresh)
            soft = tail.soft_embeddings.view(len(canvases), width, -1)
            for index, canvas in enumerate(canvases):
                canvas.tokens, canvas.argmax = moved[index], argmax[index]
                canvas.stable, canvas.soft_embeddings = stable[index], soft[index]
        return finished

    def _stopping_rule(
        self, argmax: Tensor, entropy: Tensor, canvases: list[Canvas]
    ) -> tuple[Tensor, Tensor]:
        """For how many steps each canvas has been stable, and whether it is done; both [N]."""
        counted = counted_positions(argmax, self.sampler)
        stable = stable_steps(
            argmax,
            torch.stack([canvas.argmax for canvas in canvases]),
            torch.stack([canvas.stable for canvas in canvases]),
            counted,
        )
        return stable, converged(stable, entropy, self.sampler, counted)

    def _draw(
        self,
        tail: TailResult,
        hidden: Tensor,
        temperatures: Tensor,
        accepted: Tensor,
        sequences: list[Sequence],
        canvases: list[Canvas],
    ) -> tuple[Tensor, Tensor]:
        """What accepted positions become, and what the others are renoised with; both [N, C].

        At temperature 0 the one random thing is the starting noise, so it renoises too.
        """
        pairs = list(zip(sequences, canvases, strict=True))
        greedy = [sequence.request.temperature == 0 for sequence in sequences]
        uniforms = torch.stack([canvas.noise.uniforms[s.step_index] for s, canvas in pairs])
        fresh = torch.stack(
            [
                canvas.noise.canvases[0 if is_greedy else sequence.step_index + 1]
                for (sequence, canvas), is_greedy in zip(pairs, greedy, strict=True)
            ]
        )
        sample = draw(
            tail,
            hidden,
            self.model.embedding,
            temperatures,
            uniforms.flatten(),
            accepted.flatten(),
            softcap=self.model.config.softcap,
        ).view_as(fresh)
        is_greedy = torch.tensor(greedy, device=self._device)[:, None]
        return tail.argmax.view_as(fresh).where(is_greedy, sample), fresh

    def _vocab_tail(
        self, hidden: Tensor, temperatures: Tensor, least_temperature: float
    ) -> TailResult:
        model = self.model
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
        embedding = self.model.embedding
        rows = self.model.config.canvas_length
        hidden = torch.zeros(rows, embedding.shape[1], dtype=embedding.dtype, device=self._device)
        temperatures = torch.ones(rows, device=self._device)
        try:
            self._vocab_tail(hidden, temperatures, 1.0).entropy.tolist()
        except Exception:  # whatever a compiler, a driver or a missing package may raise
            logger.warning("Triton kernels can't be used here, plain ones are", exc_info=True)
            self._kernels = False

    def _soft_embeddings(self, canvases: list[Canvas]) -> Tensor | None:
        """The canvases' self-conditioning [N * C, D], zeros before the first step."""
        if all(canvas.soft_embeddings is None for canvas in canvases):
            return None
        embedding = self.model.embedding
        nothing = embedding.new_zeros(self.model.config.canvas_length, embedding.shape[1])
        each = [canvas.soft_embeddings for canvas in canvases]
        return torch.cat([nothing if soft is None else soft for soft in each])

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
