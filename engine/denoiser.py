"""The algorithm: prefill, denoising steps, commit. Turns a `Pass` into a `PassResult`.

Owns every tensor of the running sequences. The reference is transformers'
`DiffusionGemmaGenerationMixin.generate`, against which the parity tests hold whole generations
token by token. Knows no schedule: who runs and when is the scheduler's to say, how far an answer
is the sequence's.

Letters: N canvases of a pass, C positions of the widest, R of all together, D hidden size.
"""

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.graphs import Graphs
from engine.kv_cache import KVCache, Snapshot
from engine.messages import Image
from engine.model.diffusion_gemma import DiffusionGemma, ImageRows, Segment
from engine.model.vision import Vision
from engine.model.vocab_tail import TailResult, draw, triton_vocab_tail, vocab_tail
from engine.noise import BlockNoise, block_noise
from engine.prefix_cache import PrefixCache
from engine.sampler import (
    SamplerConfig,
    accept,
    converged,
    counted_positions,
    mean_entropy,
    nearly_converged,
    stable_steps,
)
from engine.sequence import Pass, PassResult, Sequence, Step, Work

logger = logging.getLogger(__name__)

# How far a kept prefix can be cut back where sliding layers have lost its beginning. The next turn
# of a conversation differs from the last prompt in how the model's turn begins, by ten tokens.
SLACK_TOKENS = 64
LEAST_TEMPERATURE = 1e-3  # a lower one is taken as this: float32 ends before it makes a difference
NARROW_TOKENS = 16  # a narrower canvas has a multiple of these


@dataclass
class Canvas:
    """The block in the making, on the device."""

    noise: BlockNoise
    temperature: float  # the request's, which multiplies the schedule's
    tokens: Tensor  # [C] int64
    argmax: Tensor  # [C] int64; -1 before the first step
    stable: Tensor  # [] int64, steps for which argmax has stayed the same
    soft_embeddings: Tensor | None = None  # [C, D] self-conditioning; None before the first step
    step_index: int = 0  # denoising steps that it has had


@dataclass
class Slot:
    """What a running sequence has on the device."""

    cache: KVCache
    tokens: list[int]  # that the cache holds
    canvas: Canvas | None = None


@dataclass(frozen=True)
class Rows:
    """The rows of canvases that stand one behind the other, and as a tensor of one row each."""

    widths: list[int]

    def padded(self, flat: Tensor, padding: float) -> Tensor:
        """[R] -> [N, C]."""
        if len(set(self.widths)) == 1:
            return flat.view(len(self.widths), -1)
        return pad_sequence(
            list(torch.split(flat, self.widths)), batch_first=True, padding_value=padding
        )

    def filled(self, values: list[float], device: torch.device) -> Tensor:
        """Each canvas' value in all of its rows, [R] float32.

        Filled in on the device: before it took a tensor from the host, the host would have to wait
        until it has done all that was launched.
        """
        return torch.cat(
            [
                torch.full((width,), value, dtype=torch.float32, device=device)
                for width, value in zip(self.widths, values, strict=True)
            ]
        )

    def flat(self, padded: Tensor) -> Tensor:
        """[N, C] -> [R]."""
        if len(set(self.widths)) == 1:
            return padded.flatten()
        return torch.cat([row[:width] for row, width in zip(padded, self.widths, strict=True)])


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
        narrow_canvas: bool = False,
        vision: Vision | None = None,
        cuda_graphs: bool = False,
        compiled: bool = False,
    ) -> None:
        """Allocates `max_active` KV caches for `context_length` tokens and a canvas behind them.

        Up to `prefix_cache_bytes` are taken beside them, as requests come, to keep prefixes. With
        `narrow_canvas` a block of which `max_tokens` leaves less than a canvas has a narrower one.
        Without `vision` no request may have images.
        Passes that only denoise are replayed as `cuda_graphs`, `compiled`, or both.
        """
        self.model = model
        self.sampler = sampler
        self.vision = vision
        self.context_length = context_length
        self.vocab_size = model.config.vocab_size
        self._narrow_canvas = narrow_canvas
        self._device = model.embedding.device
        canvas = model.config.canvas_length
        chunk = max(prefill_chunk, 0 if vision is None else vision.most_tokens)
        self._free = [
            KVCache(
                model.config.layers,
                capacity=context_length,
                pass_tokens=max(min(chunk, context_length), canvas) + canvas,
                dtype=model.embedding.dtype,
                device=self._device,
                slack=SLACK_TOKENS,
            )
            for _ in range(max_active)
        ]
        self._prefixes: PrefixCache[Snapshot] = PrefixCache(prefix_cache_bytes)
        self._slots: dict[Sequence, Slot] = {}
        self._graphs: Graphs | None = None
        if cuda_graphs or compiled:
            self._graphs = Graphs(
                model, canvases=max_active, capture=cuda_graphs, compiled=compiled
            )
        self._kernels = self._device.type == "cuda"
        if self._kernels:
            self._try_kernels()

    @torch.inference_mode()
    def run(self, works: Pass) -> PassResult:
        """One pass through the weights for everything in it."""
        segments: list[Segment] = []
        canvases: list[Canvas] = []
        bets: dict[Sequence, Canvas] = {}  # the next blocks' canvases
        for work in works:
            slot, ahead = self._slots[work.sequence], len(work.tokens)
            if work.tokens:
                segments.append(self._encoded(slot, work.tokens, work.images))
            if work.denoise:
                slot.canvas = slot.canvas or self._new_canvas(work.sequence)
                canvases.append(slot.canvas)
                segments.append(Segment(slot.cache, slot.canvas.tokens, causal=False, start=ahead))
            if work.speculation:
                # The draft takes the canvas' place in the cache, which has been read by then.
                following = bets[work.sequence] = self._new_canvas(work.sequence, ahead=1)
                canvases.append(following)
                segments.append(self._encoded(slot, work.speculation))
                start = len(work.speculation)
                segments.append(Segment(slot.cache, following.tokens, causal=False, start=start))
        hidden = self._hidden(segments, canvases)
        steps = iter(self._sample(hidden, canvases) if canvases else [])
        # Only now: a pass that ran out of memory has changed nothing and may be run again.
        return [self._settle(work, steps, bets.get(work.sequence)) for work in works]

    def _hidden(self, segments: list[Segment], canvases: list[Canvas]) -> Tensor:
        """The network: hidden states [R, D] of the canvases, in a form that fits the pass."""
        hidden = None
        if self._graphs is not None:
            hidden = self._graphs.run(segments, [canvas.soft_embeddings for canvas in canvases])
        if hidden is None:
            hidden = self.model.run(segments, self._soft_embeddings(canvases))
        return hidden

    def _encoded(self, slot: Slot, tokens: list[int], images: tuple[Image, ...] = ()) -> Segment:
        rows = tuple(
            ImageRows(image.start - slot.cache.position, self._embeddings(image))
            for image in images
        )
        tensor = torch.tensor(tokens, device=self._device)
        return Segment(slot.cache, tensor, causal=True, images=rows)

    def _embeddings(self, image: Image) -> Tensor:
        assert self.vision is not None, "the worker refuses images that nobody can see"
        embeddings: Tensor = self.vision(image)
        return embeddings

    def _settle(self, work: Work, steps: Iterator[Step], bet: Canvas | None) -> Step | None:
        """Make what a pass did for one sequence part of its state; its steps are the next ones."""
        slot = self._slots[work.sequence]
        step = next(steps) if work.denoise else None
        following = None if bet is None else next(steps)
        self._advance(work.sequence, slot, work.tokens)
        if step is None or not step.done:
            return step
        slot.canvas = None
        # A next block that its first step finished has to be made again, to be given as a block.
        if following is None or following.done or step.draft != work.speculation:
            return step
        slot.canvas = bet
        self._advance(work.sequence, slot, work.speculation)
        return dataclasses.replace(step, next_started=True)

    def _advance(self, sequence: Sequence, slot: Slot, tokens: list[int]) -> None:
        slot.cache.advance(len(tokens))
        slot.tokens += tokens
        if tokens and len(slot.tokens) in sequence.checkpoints:
            self._keep(sequence, slot)

    def start(self, sequence: Sequence) -> int:
        """Give the sequence a free KV cache, until it is released.

        Returns how many tokens of its prompt the cache holds already, from an earlier request.
        """
        prompt = sequence.prefix_keys(sequence.request.prompt)
        cache, match = self._free.pop(), self._prefixes.longest(prompt)
        length = 0 if match is None else match.length
        if match is not None:
            cache.restore(match.kept, length)
        self._slots[sequence] = Slot(cache, sequence.request.prompt[:length])
        return length

    def release(self, sequence: Sequence) -> None:
        """The sequence has ended; it need not have started. Its KV cache is free."""
        slot = self._slots.pop(sequence, None)
        if slot is not None:
            self._keep(sequence, slot)
            slot.cache.clear()
            self._free.append(slot.cache)

    def forget_prefixes(self) -> bool:
        """Give up the memory of all kept prefixes; whether there was any."""
        some = len(self._prefixes) > 0
        self._prefixes.clear()
        return some

    def _keep(self, sequence: Sequence, slot: Slot) -> None:
        """Keep what the slot's cache holds for later requests, if there is memory for it."""
        cache, keys = slot.cache, sequence.prefix_keys(slot.tokens)
        if keys and self._prefixes.make_room(
            keys, nbytes=cache.stored_nbytes, shortest=cache.shortest
        ):
            try:
                self._prefixes.add(keys, cache.snapshot())
            except torch.OutOfMemoryError:
                logger.warning("no memory to keep a prefix of %d tokens", len(slot.tokens))
                self._prefixes.clear()

    def _sample(self, hidden: Tensor, canvases: list[Canvas]) -> list[Step]:
        """The second half of a denoising step: hidden states [R, D] move the canvases on.

        The device is waited for once, for the stopping rule. Canvases change last, so that the
        step can be run again if it fails.
        """
        each = [
            # At temperature 0 the schedule's own, for what is drawn with none of it.
            self.sampler.temperature(canvas.step_index)
            * max(canvas.temperature or 1.0, LEAST_TEMPERATURE)
            for canvas in canvases
        ]
        rows = Rows([canvas.tokens.shape[0] for canvas in canvases])
        temperatures = rows.filled(each, self._device)  # [R]
        tail = self._vocab_tail(hidden, temperatures, min(each))
        argmax, entropy = rows.padded(tail.argmax, -1), rows.padded(tail.entropy, 0.0)
        counted = counted_positions(argmax, self.sampler)
        stable = stable_steps(
            argmax,
            rows.padded(torch.cat([canvas.argmax for canvas in canvases]), -1),
            torch.stack([canvas.stable for canvas in canvases]),
            counted,
        )
        mean = mean_entropy(entropy, rows.widths, counted)
        done = converged(stable, mean, self.sampler)
        nearly = nearly_converged(mean, self.sampler)
        report = torch.cat([done[:, None], nearly[:, None], argmax], dim=1).tolist()  # the one sync
        steps = []
        for canvas, width, (is_done, is_nearly, *draft) in zip(
            canvases, rows.widths, report, strict=True
        ):
            last = canvas.step_index + 1 == self.sampler.max_denoising_steps
            steps.append(Step(draft[:width], done=bool(is_done) or last, nearly=bool(is_nearly)))
        if not all(step.done for step in steps):
            accepted = rows.flat(accept(entropy, self.sampler.entropy_bound))
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
            self.model.embedding,
            temperatures,
            torch.cat([canvas.noise.uniforms[canvas.step_index] for canvas in canvases]),
            accepted,
            softcap=self.model.config.softcap,
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
            tail = self._vocab_tail(hidden, temperatures, 1.0)
            uniforms, wanted = torch.zeros_like(temperatures), temperatures > 0
            softcap = self.model.config.softcap
            draw(tail, hidden, embedding, temperatures, uniforms, wanted, softcap=softcap)
            torch.cuda.synchronize(self._device)
        except Exception:  # whatever a compiler, a driver or a missing package may raise
            logger.warning("Triton kernels can't be used here, plain ones are", exc_info=True)
            self._kernels = False

    def _soft_embeddings(self, canvases: list[Canvas]) -> Tensor | None:
        """The canvases' self-conditioning [R, D], zeros before the first step."""
        if all(canvas.soft_embeddings is None for canvas in canvases):
            return None
        embedding = self.model.embedding
        return torch.cat(
            [
                embedding.new_zeros(canvas.tokens.shape[0], embedding.shape[1])
                if canvas.soft_embeddings is None
                else canvas.soft_embeddings
                for canvas in canvases
            ]
        )

    def _new_canvas(self, sequence: Sequence, ahead: int = 0) -> Canvas:
        """The canvas of the sequence's current block, or of one that is so many ahead."""
        longest = self.model.config.canvas_length
        width = longest
        if self._narrow_canvas:
            room = sequence.request.max_tokens - sequence.answer_tokens - ahead * longest
            width = min(longest, -(-room // NARROW_TOKENS) * NARROW_TOKENS)
        noise = block_noise(
            sequence.request.sampling.seed,
            sequence.block_index + ahead,
            steps=self.sampler.max_denoising_steps,
            canvas_length=width,
            vocab_size=self.model.config.vocab_size,
            device=self._device,
        )
        start = noise.canvases[0]
        return Canvas(
            noise,
            sequence.request.sampling.temperature,
            tokens=start,
            argmax=torch.full_like(start, -1),
            stable=torch.zeros((), dtype=torch.int64, device=self._device),
        )
