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

from engine.denoise.canvas import Canvas, new_canvas, self_conditioning
from engine.denoise.denoising_step import DenoisingStep
from engine.denoise.graphs import Graphs
from engine.denoise.sampler import SamplerConfig
from engine.device import out_of_memory
from engine.messages import Image
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.kv_cache import KVCache, Snapshot
from engine.model.rows import ImageRows, Segment
from engine.model.vision import Vision
from engine.schedule.prefix_cache import PrefixCache
from engine.schedule.sequence import Pass, PassResult, Sequence, StepResult, Work
from engine.sizing.kv import SLACK_TOKENS, pass_tokens

logger = logging.getLogger(__name__)


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
        vision: Vision | None = None,
        cuda_graphs: bool = False,
        compiled: bool = False,
    ) -> None:
        """Allocate `max_active` KV caches, each for `context_length` tokens and a canvas.

        Beside them, up to `prefix_cache_bytes` are taken for kept prefixes as requests come.
        Without `vision` no request may have images. Passes that only denoise are run as CUDA
        graphs, compiled, or both.
        """
        self.model = model
        self.sampler = sampler
        self.vision = vision
        self.context_length = context_length
        self.vocab_size = model.dimensions.vocab_size
        self._device = model.device
        room = pass_tokens(
            context=context_length,
            canvas=model.dimensions.canvas_length,
            prefill_chunk=prefill_chunk,
            image_tokens=0 if vision is None else vision.most_tokens,
        )
        self._free = [
            KVCache(
                model.dimensions.layers,
                capacity=context_length,
                pass_tokens=room,
                dtype=model.dtype,
                device=self._device,
                slack=SLACK_TOKENS,
            )
            for _ in range(max_active)
        ]
        self._prefixes: PrefixCache[Snapshot] = PrefixCache(prefix_cache_bytes)
        self._slots: dict[Sequence, Slot] = {}
        self._parked: dict[Sequence, Canvas] = {}
        self._step = DenoisingStep(model)
        self._graphs: Graphs | None = None
        if cuda_graphs or compiled:
            self._graphs = Graphs(
                model, canvases=max_active, capture=cuda_graphs, compiled=compiled
            )

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
                following = bets[work.sequence] = self._new_canvas(work.sequence, work.speculation)
                canvases.append(following)
                segments.append(self._encoded(slot, work.speculation))
                start = len(work.speculation)
                segments.append(Segment(slot.cache, following.tokens, causal=False, start=start))
        hidden = self._hidden(segments, canvases)
        steps = iter(self._step.run(hidden, canvases) if canvases else [])
        # Only now: a pass that ran out of memory has changed nothing and may be run again.
        return [self._settle(work, steps, bets.get(work.sequence)) for work in works]

    def _new_canvas(self, sequence: Sequence, ahead: list[int] | None = None) -> Canvas:
        dimensions = self.model.dimensions
        return new_canvas(
            sequence,
            sampler=self.sampler,
            canvas_length=dimensions.canvas_length,
            vocab_size=dimensions.vocab_size,
            device=self._device,
            ahead=ahead,
        )

    def _hidden(self, segments: list[Segment], canvases: list[Canvas]) -> Tensor:
        """The network: hidden states [R, D] of the canvases, in a form that fits the pass."""
        hidden = None
        if self._graphs is not None:
            hidden = self._graphs.run(segments, [canvas.soft_embeddings for canvas in canvases])
        if hidden is None:
            hidden = self.model.run(segments, self_conditioning(canvases, self.model.norm.weight))
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

    def _settle(
        self, work: Work, steps: Iterator[StepResult], bet: Canvas | None
    ) -> StepResult | None:
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

        Returns how many of its tokens the cache holds already, from an earlier request.
        """
        tokens = sequence.unencoded
        cache, match = self._free.pop(), self._prefixes.longest(sequence.prefix_keys(tokens))
        length = 0 if match is None else match.length
        if match is not None:
            cache.restore(match.kept, length)
        self._slots[sequence] = Slot(cache, tokens[:length], self._parked.pop(sequence, None))
        return length

    def park(self, sequence: Sequence) -> None:
        """The sequence gives way: its KV cache is free, its keys and values a kept prefix.

        The canvas in the making stays, so that it goes on with the same step.
        """
        canvas = self._slots[sequence].canvas
        self.release(sequence)
        if canvas is not None:
            self._parked[sequence] = canvas

    def release(self, sequence: Sequence) -> None:
        """The sequence has ended; it need not have started. Its KV cache is free."""
        self._parked.pop(sequence, None)
        slot = self._slots.pop(sequence, None)
        if slot is not None:
            self._keep(sequence, slot)
            slot.cache.clear()
            self._free.append(slot.cache)

    @property
    def kept_prefix_bytes(self) -> int:
        """Device memory that kept prefixes hold."""
        return self._prefixes.nbytes

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
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                logger.warning("no memory to keep a prefix of %d tokens", len(slot.tokens))
                self._prefixes.clear()
