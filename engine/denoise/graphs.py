"""CUDA graphs: a denoising pass is captured once, then replayed as one launch instead of hundreds.

The compiled form of the pass is run from here too. A graph holds the network in its fixed shapes
(`StaticPass`). It does not hold

- passes that encode, speculate or end with a suffix, because they have too many shapes;
- the vocabulary tail, the sampler and the stopping rule. The host launches them while the device
  is busy with the graph, so that capturing them would gain next to nothing. And so passes that
  replay one graph may have requests with different sampler settings.

A graph is bound to the addresses of the pass' buffers and of its sequences' caches. So each
combination of caches has its own graph for each length that is attended to, made when it is first
needed. If that fails, one log line says so, and all later passes are dynamic: they have the same
results without a graph.

Letters: R canvas positions (rows) of a pass, C positions of a canvas, D hidden size.
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
_REASON = 300  # characters of an exception's text that are logged, in one line

Replay = Callable[[], Tensor]  # runs the pass on the buffers' contents


class Graphs:
    """Runs the passes that have fixed shapes."""

    def __init__(
        self, model: DiffusionGemma, *, canvases: int, capture: bool, compiled: bool
    ) -> None:
        """Prepare for passes of up to `canvases` canvases, which are captured, compiled or both."""
        self._static: StaticPass | None = StaticPass(model, canvases=canvases, compiled=compiled)
        self._capture = Capture() if capture else None
        self._replays: OrderedDict[tuple[tuple[KVCache, ...], int], Replay] = OrderedDict()

    @property
    def on(self) -> bool:
        """Returns whether no pass has failed yet. After a failure all passes are dynamic."""
        return self._static is not None

    def run(
        self, segments: Sequence[Segment], soft_embeddings: Sequence[Tensor | None]
    ) -> Tensor | None:
        """Returns the pass' hidden states [R, D], which the next pass overwrites.

        `soft_embeddings` holds each canvas' self-conditioning [C, D], or None. Returns None if the
        pass has to be dynamic: because it does not consist of whole canvases alone, or because
        this pass or an earlier one failed here.
        """
        static = self._static
        if static is None or not all(static.takes(segment) for segment in segments):
            return None
        try:
            static.fill(segments, soft_embeddings)
            caches = tuple(segment.cache for segment in segments)
            return self._replay(static, caches, static.length(segments))()
        except Exception as error:  # a driver, a compiler or a library may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON]
            logger.warning(
                "CUDA graphs and compiled passes are off from here on, all passes are dynamic: %s",
                reason,
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
    """Makes graphs that share one pool of memory, because only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: torch.cuda._POOL_HANDLE | None = None

    def __call__(self, work: Replay) -> Replay:
        """Run `work`, then capture it, and return a function that replays it.

        Raises whatever the device raises: memory may run out, or a library may wait for the host
        in `work`. (If the experts' product does, nothing is captured in the first place.)
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
