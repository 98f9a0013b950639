"""The algorithm: prefill, denoising steps, commit. Turns a `Pass` into a `PassResult`.

This module owns every tensor of the running sequences. It knows no schedule: the scheduler decides
which sequence runs when, and the sequence tracks its answer. The reference is transformers'
`DiffusionGemmaGenerationMixin.generate`: the parity tests compare whole generations with it, token
by token.

Letters: N canvases of a pass, C positions of the widest canvas, R positions (rows) of all canvases
together, D hidden size.
"""

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush

import torch
from torch import Tensor

from engine.constraint.projection import Projector
from engine.denoise.canvas import Canvas, Rules, new_canvas, self_conditioning
from engine.denoise.decision_pass import read_segments, run_alone
from engine.denoise.denoising_step import DenoisingStep
from engine.denoise.graphs import Graphs
from engine.denoise.prediction import PredictedAnswer
from engine.denoise.reader import CanvasStep, ReadCanvas, Reader
from engine.denoise.sampler import SamplerConfig
from engine.device import out_of_memory
from engine.messages import Image, Prediction
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.kv_cache import KVCache, Snapshot, new_caches
from engine.model.rows import ImageRows, Segment
from engine.model.vision import Vision
from engine.schedule.prefix_cache import Match, PrefixCache, common_prefix
from engine.schedule.sequence import Pass, PassResult, Sequence, StepResult, Work, WorkResult
from engine.sizing.kv import SLACK_TOKENS, pass_tokens

logger = logging.getLogger(__name__)


@dataclass
class Slot:
    """The KV cache and the canvas of a running sequence."""

    number: int
    cache: KVCache
    tokens: list[int]  # those that the cache holds
    canvas: Canvas | None = None
    reads: dict[int, ReadCanvas] = field(default_factory=dict)  # a decision's, by their numbers


@dataclass(frozen=True)
class Parked:
    """The unfinished canvases of a parked sequence."""

    canvas: Canvas | None
    reads: dict[int, ReadCanvas]


class Denoiser:
    """The model, with the state of the sequences that it works on."""

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
        speculate: bool = False,
    ) -> None:
        """Allocate `max_active` KV caches, each for `context_length` tokens and a canvas.

        Kept prefixes take up to `prefix_cache_bytes` more as requests arrive. Without `vision` no
        request may have images. If `cuda_graphs` is set, passes of fixed shapes are CUDA graphs.
        Speculative passes have graphs if `speculate` is set too.
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
        self._caches = new_caches(  # by the number of their slot
            max_active,
            model.dimensions.layers,
            capacity=context_length,
            pass_tokens=room,
            dtype=model.dtype,
            device=self._device,
            slack=SLACK_TOKENS,
        )
        self._free = list(range(max_active))  # a heap of the slots without a sequence
        self.kv_budget_bytes = sum(cache.most_stored_nbytes for cache in self._caches)
        self._prefixes: PrefixCache[Snapshot] = PrefixCache(prefix_cache_bytes)
        self.kept_prefix_budget_bytes = prefix_cache_bytes
        self._slots: dict[Sequence, Slot] = {}
        self._parked: dict[Sequence, Parked] = {}
        self._rules: dict[Sequence, Rules] = {}  # of constrained sequences
        self._predictions: dict[Sequence, PredictedAnswer] = {}  # of sequences that have one
        self._step = DenoisingStep(model)
        self._reader = Reader(model)
        # On a CPU, where a pass for each piece costs little more than one for all.
        piece = min(SLACK_TOKENS, (prefill_chunk + 1) // 2)
        self.exact_piece = piece if self._device.type == "cpu" else None
        # A read's prompt is encoded in one pass, behind what of an exact prompt is no whole piece.
        self.read_tokens = prefill_chunk - (self.exact_piece or 1) + 1
        self._graphs: Graphs | None = None
        if cuda_graphs:
            self._graphs = Graphs(model, canvases=max_active, speculate=speculate)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture what can be known before the first request. Call it before that."""
        if self._graphs is not None:
            self._graphs.prepare(self._caches, self.model.dimensions.canvas_length)

    def prepare_corrections(self, rules: Rules) -> None:
        """Have the loops compiled that corrections need. Another thread may call it."""
        if isinstance(rules, Projector):
            self._step.corrections.prepare(rules)

    @property
    def captured_graphs(self) -> int:
        """Returns how many CUDA graphs have been captured so far."""
        return 0 if self._graphs is None else self._graphs.captured

    @torch.inference_mode()
    def run(self, works: Pass) -> PassResult:
        """Make one pass through the weights for all `works`.

        Returns each work's result, or None where nothing was denoised. A pass that runs out of
        memory can be run again. Exact decisions have passes of their own.
        """
        # By slots, because a graph is bound to its caches in their order.
        ordered = sorted(works, key=lambda work: self._slots[work.sequence].number)
        segments: list[Segment] = []
        canvases: list[Canvas] = []
        speculative: dict[Sequence, Canvas] = {}  # the canvases of next blocks
        for work in ordered:
            slot, ahead = self._slots[work.sequence], len(work.tokens)
            if work.sequence.boundaries is not None:
                continue
            if work.tokens:
                segments.append(self._encoder_segment(slot, work.tokens, work.images))
            if work.denoise:
                slot.canvas = slot.canvas or self._new_canvas(work.sequence)
                canvases.append(slot.canvas)
                segments.append(Segment(slot.cache, slot.canvas.tokens, causal=False, start=ahead))
            if work.speculation:
                # The draft overwrites the canvas' entries in the cache, after they were read.
                next_canvas = self._new_canvas(work.sequence, work.speculation)
                speculative[work.sequence] = next_canvas
                canvases.append(next_canvas)
                segments.append(self._encoder_segment(slot, work.speculation))
                start = len(work.speculation)
                segments.append(Segment(slot.cache, next_canvas.tokens, causal=False, start=start))
        reads: dict[Sequence, list[ReadCanvas]] = {}
        alone: dict[Sequence, list[Segment]] = {}  # of exact decisions
        for work in ordered:
            if work.sequence.reading is None:
                continue
            slot = self._slots[work.sequence]
            read = reads[work.sequence] = self._reader.canvases(work, slot.reads, self.sampler)
            encode = partial(self._encoder_segment, slot)
            parts = read_segments(work, read, slot.cache, encode, self.exact_piece)
            if work.sequence.boundaries is None:
                segments += parts
            else:
                alone[work.sequence] = parts
        together = [each for key, several in reads.items() if key not in alone for each in several]
        steps: Iterator[StepResult] = iter(())
        read_steps: Iterator[CanvasStep] = iter(())
        if segments:
            hidden = self._run_model(segments, [*canvases, *together])
            rows = sum(canvas.width for canvas in canvases)
            steps = iter(self._step.run(hidden[:rows], canvases) if canvases else [])
            read_steps = iter(self._reader.read(hidden[rows:], together, self.sampler))
        exact_steps = {
            sequence: run_alone(self.model, self._reader, parts, reads[sequence], self.sampler)
            for sequence, parts in alone.items()
        }
        # Sequences change only here, so that a pass that ran out of memory can be run again.
        results: dict[Sequence, WorkResult] = {}
        for work in ordered:
            sequence = work.sequence
            if sequence in reads:
                own = exact_steps.get(sequence) or [next(read_steps) for _ in reads[sequence]]
                results[sequence] = self._settle_reads(work, reads[sequence], own)
            else:
                results[sequence] = self._settle(work, steps, speculative.get(sequence))
        return [results[work.sequence] for work in works]

    def _settle_reads(
        self, work: Work, canvases: list[ReadCanvas], steps: list[CanvasStep]
    ) -> WorkResult:
        """Update a decision's state by what the pass did for it, and return what it read."""
        if not all(step.result.finite for step in steps):
            return [step.result for step in steps]  # nothing of the pass is worth keeping
        slot = self._slots[work.sequence]
        self._advance(work.sequence, slot, work.tokens)
        for number, canvas, step in zip(work.reads, canvases, steps, strict=True):
            step.apply(canvas)
            slot.reads[number] = canvas
            if canvas.step_index == canvas.steps:
                del slot.reads[number]
        return [step.result for step in steps] or None

    def _new_canvas(self, sequence: Sequence, ahead: list[int] | None = None) -> Canvas:
        dimensions = self.model.dimensions
        return new_canvas(
            sequence,
            sampler=self.sampler,
            canvas_length=dimensions.canvas_length,
            vocab_size=dimensions.vocab_size,
            device=self._device,
            rules=self._rules.get(sequence),
            prediction=self._predictions.get(sequence),
            ahead=ahead,
            kernel=self._step.kernel,
        )

    def _run_model(self, segments: list[Segment], canvases: list[Canvas | ReadCanvas]) -> Tensor:
        """Returns the canvases' hidden states [R, D], from `Graphs` if it can run the pass."""
        hidden = None
        if self._graphs is not None:
            hidden = self._graphs.run(segments, [canvas.soft_embeddings for canvas in canvases])
        if hidden is None:
            hidden = self.model.run(segments, self_conditioning(canvases, self.model.norm.weight))
        return hidden

    def _encoder_segment(
        self, slot: Slot, tokens: list[int], images: tuple[Image, ...] = (), *, start: int = 0
    ) -> Segment:
        rows = tuple(
            ImageRows(image.start - slot.cache.position - start, self._embeddings(image))
            for image in images
        )
        tensor = torch.tensor(tokens, device=self._device)
        return Segment(slot.cache, tensor, causal=True, start=start, images=rows)

    def _embeddings(self, image: Image) -> Tensor:
        assert self.vision is not None, "the worker refuses images without a vision tower"
        embeddings: Tensor = self.vision(image)
        return embeddings

    def _settle(
        self, work: Work, steps: Iterator[StepResult], next_canvas: Canvas | None
    ) -> StepResult | None:
        """Update a sequence's state by what the pass did for it, and return its step's result.

        `steps` yields the results of the pass' canvases in order. `next_canvas` is the speculative
        one of this sequence, if the pass has one.
        """
        slot = self._slots[work.sequence]
        step = next(steps) if work.denoise else None
        next_step = None if next_canvas is None else next(steps)
        if step is not None and not (step.finite and step.fault is None):
            return step  # nothing that the pass encoded is worth keeping
        self._advance(work.sequence, slot, work.tokens)
        if step is None or not step.done:
            return step
        slot.canvas = None
        # A pass returns at most one block of a sequence. If the next block is done as well after
        # its first step, it is dropped and made again, so that a later pass returns it. So is one
        # with numbers that are not finite: a later pass fails then, behind the finished block.
        if next_step is None or next_step.done or not next_step.finite or next_step.fault:
            return step
        if step.draft != work.speculation:
            return step
        slot.canvas = next_canvas
        self._advance(work.sequence, slot, work.speculation)
        return dataclasses.replace(step, next_step=next_step)

    def _advance(self, sequence: Sequence, slot: Slot, tokens: list[int]) -> None:
        slot.cache.advance(len(tokens))
        slot.tokens += tokens
        if tokens and len(slot.tokens) in sequence.checkpoints:
            self._keep(sequence, slot)

    def constrain(self, sequence: Sequence, rules: Rules) -> None:
        """Constrain the sequence's answer until its `release`. Call it before `start`."""
        self._rules[sequence] = rules

    def predict(self, sequence: Sequence, prediction: Prediction) -> None:
        """Start the sequence's canvases from `prediction` until its `release`. Call before `start`.

        Nothing else about the sequence changes.
        """
        self._predictions[sequence] = PredictedAnswer(prediction.tokens, prediction.behind)

    def predicted_tokens(self, sequence: Sequence) -> int:
        """Returns how many tokens of its prediction the sequence's answer has so far."""
        prediction = self._predictions.get(sequence)
        return 0 if prediction is None else prediction.agreed(sequence.answer)

    def start(self, sequence: Sequence) -> int:
        """Assign a free KV cache to the sequence, until `release` or `park`.

        Returns how many of the sequence's tokens the cache already holds, from a kept prefix or
        from the cache of a running sequence with the same prompt.
        """
        tokens = sequence.unencoded
        number = heappop(self._free)  # the lowest, so that there are few sets of slots
        cache, match = self._caches[number], self._prefixes.longest(sequence.prefix_keys(tokens))
        for other, slot in self._slots.items():
            if other.prompt_key == sequence.prompt_key:
                common = common_prefix(slot.tokens, tokens)
                if common >= max(slot.cache.shortest, 1 + (match.length if match else 0)):
                    match = Match(slot.cache.view(), common)
        if match is not None and sequence.boundaries is not None:
            common = max((at for at in sequence.boundaries if at <= match.length), default=0)
            match = Match(match.kept, common) if common >= max(match.kept.shortest, 1) else None
        length = 0 if match is None else match.length
        if match is not None:
            cache.restore(match.kept, length)
        parked = self._parked.pop(sequence, Parked(None, {}))
        self._slots[sequence] = Slot(number, cache, tokens[:length], parked.canvas, parked.reads)
        return length

    def park(self, sequence: Sequence) -> None:
        """Free the KV cache of a sequence that gives way, and keep its contents as a prefix.

        Unfinished canvases are set aside, so that the sequence later continues with the same step.
        """
        slot = self._slots[sequence]
        self._free_slot(sequence, keep=True)
        self._parked[sequence] = Parked(slot.canvas, slot.reads)

    def release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Free the KV cache of a sequence that has ended.

        Its contents are kept as a prefix unless `keep` is unset. The sequence need not have
        started. If it is parked, its canvases are dropped.
        """
        self._parked.pop(sequence, None)
        self._rules.pop(sequence, None)
        self._predictions.pop(sequence, None)
        self._free_slot(sequence, keep=keep)

    def _free_slot(self, sequence: Sequence, *, keep: bool) -> None:
        slot = self._slots.pop(sequence, None)
        if slot is not None:
            if keep:
                self._keep(sequence, slot)
            slot.cache.clear()
            heappush(self._free, slot.number)

    @property
    def kv_used_bytes(self) -> int:
        """Returns how many bytes of `kv_budget_bytes` hold tokens of running sequences."""
        return sum(slot.cache.stored_nbytes for slot in self._slots.values())

    @property
    def kept_prefix_bytes(self) -> int:
        """Returns the device memory that kept prefixes hold."""
        return self._prefixes.nbytes

    def forget_prefixes(self) -> bool:
        """Free the memory of all kept prefixes. Returns whether there were any."""
        had_prefixes = len(self._prefixes) > 0
        self._prefixes.clear()
        return had_prefixes

    def _keep(self, sequence: Sequence, slot: Slot) -> None:
        """Keep a copy of the slot's cache for later requests, if there is memory for it."""
        cache, keys = slot.cache, sequence.prefix_keys(slot.tokens)
        if keys and self._prefixes.make_room(
            keys, nbytes=cache.stored_nbytes, shortest=cache.shortest
        ):
            try:
                self._prefixes.add(keys, cache.snapshot())
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                logger.warning("out of memory for keeping a prefix of %d tokens", len(slot.tokens))
                self._prefixes.clear()
