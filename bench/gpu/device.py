"""The device that is checked, the sizes that suit it, and times measured on it."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.gpu import results
from engine.sizing.dimensions import Dimensions

TINY = os.environ.get(results.TINY) == "1"
DEVICE = torch.device("cpu" if TINY else "cuda")
# Triton's interpreter multiplies bfloat16 wrongly.
HALF = torch.float32 if TINY else torch.bfloat16

Work = Callable[[], object]


def sync() -> None:
    """Wait until the device has finished its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def empty_cache() -> None:
    """Return the memory that torch's allocator keeps for later to the device."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def wall_ms(work: Work, *, rounds: int = 10, warm_ups: int = 2) -> float:
    """Returns the median time of `work` in milliseconds, measured by the host."""
    for _ in range(warm_ups):
        work()
    times = []
    for _ in range(rounds):
        sync()
        started = time.perf_counter()
        work()
        sync()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def gpu_ms(works: Sequence[Work], *, rounds: int = 10) -> float:
    """Returns the mean time of these works in milliseconds, run one after another in a CUDA graph.

    So the gaps between launches do not count. To keep the tensors of a work out of the L2 cache,
    pass several works with different tensors. Without a GPU the host measures the time.
    """

    def run_all() -> None:
        for work in works:
            work()

    if DEVICE.type != "cuda":
        return wall_ms(run_all, rounds=1, warm_ups=0) / len(works)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run_all()
        run_all()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run_all()
    times: list[float] = []
    for _ in range(rounds + 2):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return statistics.median(times[2:]) / len(works)  # without the warm-ups


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference divided by the norm of `expected`."""
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm())


def tiny(dimensions: Dimensions) -> Dimensions:
    """Returns these dimensions with as many layers, but with every size small."""
    return dataclasses.replace(
        dimensions,
        vocab_size=4096,
        hidden_size=64,
        mlp_size=64,
        query_heads=4,
        experts=4,
        experts_per_token=2,
        expert_size=32,
        canvas_length=16,
        layers=tuple(
            dataclasses.replace(layer, kv_heads=1, head_size=32, window=layer.window and 32)
            for layer in dimensions.layers
        ),
    )
