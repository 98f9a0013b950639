"""CUDA graphs: a denoising pass is captured once, then replayed as one launch instead of hundreds.

A graph holds the network in its fixed shapes (`StaticPass`). It does not hold

- passes that encode a prompt or end with a suffix, because they have too many shapes;
- the vocabulary tail, the sampler and the stopping rule. The host launches them while the device
  is busy with the graph, so that capturing them would gain next to nothing. And so passes that
  replay one graph may have requests with different sampler settings.

A graph is bound to the addresses of the pass' buffers and of its sequences' caches, in the order of
their slots. So each set of slots has a graph of its own, unless all segments are in the same
launches, which find the caches by numbers on the device. Triton's attention reads only the entries
that it needs, so one graph of a set serves every length, and all graphs are made at the start if
there are not too many. With PyTorch's attention a set has a graph for each length that is attended
to, made when it is first needed. If that fails, one log line says so, and all later passes are
dynamic: they have the same results without a graph.

A block's first pass also commits the block before, and a speculative pass commits a draft. They
have graphs only if these are made at the start: for each slot alone, and for each set of slots of
which one commits or speculates, as long as there are not too many. Other such passes are dynamic.

All captures use one stream, and no graph is destroyed while another one is kept: when a graph is
destroyed, torch 2.13 and 2.14 free the cuBLAS workspaces of the stream on which it was captured,
and graphs that were captured there go on using this memory (pytorch#193402).

Letters: R canvas positions (rows) of a pass, C positions of a canvas, D hidden size.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.kv_cache import KVCache
from engine.model.rows import Segment
from engine.model.static_pass import Form, Forms, StaticPass
from engine.sizing.plan import MOST_GRAPHS

logger = logging.getLogger(__name__)

_WARM_UPS = 2  # runs before the capture, in which libraries allocate and compile what they need
_REASON = 300  # characters of an exception's text that are logged, in one line

Replay = Callable[[], Tensor]  # runs the pass on the buffers' contents


class Graphs:
    """Runs the passes that have fixed shapes."""

    def __init__(
        self,
        model: DiffusionGemma,
        *,
        canvases: int,
        capture: bool = True,
        speculate: bool = False,
    ) -> None:
        """Prepare for passes of up to `canvases` sequences.

        `speculate` says whether there are speculative passes. If `capture` is unset, passes have
        fixed shapes but are not captured, which measurements and tests need.
        """
        self._static: StaticPass | None = StaticPass(model, canvases=canvases)
        self._capture = Capture() if capture else None
        self._speculate = speculate
        self._replays: dict[tuple[Hashable, int], Replay] = {}
        self.captured = 0  # graphs made so far

    @property
    def on(self) -> bool:
        """Returns whether no pass has failed yet. After a failure all passes are dynamic."""
        return self._static is not None

    def run(
        self, segments: Sequence[Segment], soft_embeddings: Sequence[Tensor | None]
    ) -> Tensor | None:
        """Returns the pass' hidden states [R, D], which the next pass overwrites.

        `soft_embeddings` holds each canvas' self-conditioning [C, D], or None. Returns None if the
        pass has to be dynamic: because it has other segments than whole canvases and the blocks
        before them, because there is no graph for it, or because this pass or an earlier one failed
        here.
        """
        static = self._static
        if static is None or not static.takes(segments):
            return None
        try:
            forms = tuple(map(Form.of, segments))
            length = static.length(forms)
            if not self._may_run(static, forms, length):
                return None
            static.fill(segments, soft_embeddings)
            return self._replay(static, forms, length)()
        except Exception as error:  # a driver, a compiler or a library may raise anything
            self._give_up(error)
            return None

    def prepare(self, caches: Sequence[KVCache], canvas: int) -> None:
        """Capture all graphs that passes of these caches can need, while the caches are empty.

        `caches` are in the order of their slots, `canvas` is a canvas' length. Passes without a
        commit come first. Of these nothing is captured if there would be more graphs than are kept,
        or if a graph serves one length only: each is made when it is needed then.
        """
        static, started = self._static, time.monotonic()
        if static is None or self._capture is None or not static.any_length:
            return
        passes: dict[Hashable, Forms] = {}  # one of those that the same graph serves
        for group in _passes(caches, canvas, speculate=self._speculate):
            more = passes | {static.key(forms): forms for forms in group}
            if len(more) > MOST_GRAPHS:
                break
            passes = more
        if not passes:
            return
        try:
            # The largest pass first, so that the others fit into the memory that it has taken.
            for forms in sorted(passes.values(), key=len, reverse=True):
                self._replay(static, forms, static.length(forms))()
        except Exception as error:  # as in `run`
            self._give_up(error)
            return
        seconds = time.monotonic() - started
        logger.info("made %d CUDA graphs in %.1f s", self.captured, seconds)

    def _may_run(self, static: StaticPass, forms: Forms, length: int) -> bool:
        """Returns whether the pass needs no graph, has one, or is worth making one for."""
        if self._capture is None or not any(form.causal for form in forms):
            return True
        return (static.key(forms), length) in self._replays

    def _give_up(self, error: Exception) -> None:
        """Make all passes dynamic from here on, and log why."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON]
        logger.warning(
            "CUDA graphs are off from here on, all passes are dynamic: %s",
            reason,
        )
        self._static = None
        self._replays.clear()

    def _replay(self, static: StaticPass, forms: Forms, length: int) -> Replay:
        def work() -> Tensor:
            return static.run(forms, length)

        if self._capture is None:
            return work
        key = (static.key(forms), length)
        if key not in self._replays:
            if len(self._replays) == MOST_GRAPHS:
                self._forget(static)
            self._replays[key] = self._capture(work)
            self.captured += 1
        return self._replays[key]

    def _forget(self, static: StaticPass) -> None:
        """Destroy all graphs, none of which may be running then."""
        static.synchronize()
        self._replays.clear()


def _passes(caches: Sequence[KVCache], canvas: int, *, speculate: bool) -> Iterator[list[Forms]]:
    """Yields groups of the passes that these caches can need, the most frequent ones first.

    They are those that only denoise, those of one sequence that commits or speculates, and those of
    several sequences one of which does so. That two do it in one pass is rare.
    """

    def denoise(cache: KVCache) -> Forms:
        return (Form(cache),)

    def commit(cache: KVCache) -> Forms:
        return Form(cache, causal=True), Form(cache, start=canvas)

    def speculative(cache: KVCache) -> Forms:
        return denoise(cache) + commit(cache)

    others = (commit, speculative) if speculate else (commit,)
    sets = [each for n in range(1, len(caches) + 1) for each in combinations(caches, n)]
    yield [tuple(map(Form, each)) for each in sets]
    for other in others:
        yield [other(cache) for cache in caches]
    for other in others:
        yield [
            tuple(f for cache in each for f in (other if cache is one else denoise)(cache))
            for each in sets
            if len(each) > 1
            for one in each
        ]


class Capture:
    """Makes graphs that share one pool of memory, because only one of them runs at a time.

    They share one stream too. Each stream has cuBLAS workspaces of its own.
    """

    def __init__(self) -> None:
        self._pool: torch.cuda._POOL_HANDLE | None = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, work: Replay) -> Replay:
        """Run `work`, then capture it, and return a function that replays it.

        Raises whatever the device raises: memory may run out, or a library may wait for the host
        in `work`. (If the experts' product does, nothing is captured in the first place.)
        """
        graph = torch.cuda.CUDAGraph()
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # it has no types
            self._pool = torch.cuda.graph_pool_handle()
        stream, current = self._stream, torch.cuda.current_stream()
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    work()
            current.wait_stream(stream)
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                result = work()
        finally:
            torch.cuda.set_stream(current)  # torch does not do so if a capture fails

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
