"""CUDA graphs: a denoising pass is captured once and then replayed as one launch instead of
hundreds. Also where the compiled form of the pass is run.

In a graph is the network, in its fixed shapes (`StaticPass`). Outside stay

- passes that encode, bet on a draft or lead up to a suffix: their shapes are too many;
- the vocabulary tail, the sampler and the stopping rule: the device is busy with the graph while
  the host launches the tail, so that capturing it would gain next to nothing, and what a request
  may ask of its sampler need not be the same for every pass of a graph.

A graph is bound to addresses: to the pass' buffers and to the caches of the sequences in it. So
there is one for each choice of caches and each length that is looked at, made when it is first
needed. Where that fails the log says so once, and the passes are dynamic from then on: same
results, no graph.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.kv_cache import KVCache
from engine.model.rows import Segment
from engine.model.static_pass import StaticPass
from engine.sizing.plan import MOST_GRAPHS

logger = logging.getLogger(__name__)

_WARM_UPS = 2  # runs before the capture, in which libraries allocate and compile what they need
_REASON = 300  # characters of an exception's text that the log gets, in one line

Replay = Callable[[], Tensor]  # runs the pass on what the buffers hold


class Graphs:
    """Runs those passes that have fixed shapes."""

    def __init__(
        self, model: DiffusionGemma, *, canvases: int, capture: bool, compiled: bool
    ) -> None:
        """For passes of up to so many canvases; captured, compiled or both."""
        self._static: StaticPass | None = StaticPass(model, canvases=canvases, compiled=compiled)
        self._capture = Capture() if capture else None
        self._replays: OrderedDict[tuple[tuple[KVCache, ...], int], Replay] = OrderedDict()

    @property
    def on(self) -> bool:
        """Whether nothing has failed yet."""
        return self._static is not None

    def run(
        self, segments: Sequence[Segment], soft_embeddings: Sequence[Tensor | None]
    ) -> Tensor | None:
        """The pass' hidden states [R, D], to be read before the next pass overwrites them.

        None if it has to be run as a dynamic pass: it is not one of whole canvases only, or graphs
        can't be had here. `soft_embeddings` [C, D] is each canvas' self-conditioning.
        """
        static = self._static
        if static is None or not all(static.takes(segment) for segment in segments):
            return None
        try:
            static.fill(segments, soft_embeddings)
            caches = tuple(segment.cache for segment in segments)
            return self._replay(static, caches, static.length(segments))()
        except Exception as error:  # whatever a driver, a compiler or a library may raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON]
            logger.warning(
                "no CUDA graphs or compiled passes from here on, but dynamic ones: %s", reason
            )
            self._static = None
            self._replays.clear()
            return None

    def _replay(self, static: StaticPass, caches: tuple[KVCache, ...], length: int) -> Replay:
        def work() -> Tensor:
            return static.run(caches, length)

        if self._capture is None:
            return work
        key = (caches, length)
        if key not in self._replays:
            if len(self._replays) == MOST_GRAPHS:
                self._replays.popitem(last=False)
            self._replays[key] = self._capture(work)
        self._replays.move_to_end(key)
        return self._replays[key]


class Capture:
    """Makes graphs that share one pool of memory: none runs while another does."""

    def __init__(self) -> None:
        self._pool: torch.cuda._POOL_HANDLE | None = None

    def __call__(self, work: Replay) -> Replay:
        """Run `work`, then capture it. Raises what the device raises: a library may wait for the
        host in it (where the experts' product does, nothing is captured in the first place), or
        memory may run out.
        """
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's class has no types
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            result = work()
        self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
