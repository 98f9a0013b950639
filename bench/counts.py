"""Counts that do not depend on the machine: passes, syncs, launches, vocabulary-sized tensors.

tests/bench/test_counts.py bounds them, so that they cannot grow unnoticed.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.compare import Row, Show, silent
from bench.launches import step_launches
from bench.random_model import Shape, write_random_model
from bench.roofline import released
from bench.sides import demo_prompt, easel_step, load_both, random_prompt, transformers_step
from engine.config import EngineConfig
from engine.loading import build_denoiser
from engine.messages import Block, GenerateRequest, Sampling
from engine.sizing.chunks import VOCAB_CHUNK
from engine.worker import Worker

COLUMNS = ["launches", "syncs", "vocab_tensors", "blocks", "steps", "passes"]
# Calls that make the host wait for the device: they read a result or send a tensor there.
_SYNCS = {
    Tensor.tolist,
    Tensor.item,
    Tensor.cpu,
    Tensor.numpy,
    Tensor.nonzero,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    torch.nonzero,
    torch.tensor,
}

# The vocabulary has several chunks, so that a whole row of it differs from a chunk in size.
SHAPE = Shape(layers="sssssf", canvas=32, vocab=4 * VOCAB_CHUNK, steps=48)


@dataclass
class Counts:
    """The counts of one piece of work."""

    launches: int = 0  # operations that write a tensor; views are not counted
    syncs: int = 0
    vocab_tensors: int = 0  # written tensors that hold the whole vocabulary for every row


def count(work: Callable[[], object], *, rows: int, vocab: int) -> Counts:
    """Run `work`, with passes of `rows` rows and a vocabulary of `vocab` tokens, and count."""
    counts = Counts()

    class Dispatched(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if not func.is_view and "detach" not in str(func):
                counts.launches += 1
                counts.vocab_tensors += sum(
                    isinstance(leaf, Tensor) and leaf.numel() >= rows * vocab
                    for leaf in tree_leaves(result)
                )
            return result

    class Called(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            counts.syncs += func in _SYNCS
            return func(*args, **(kwargs or {}))

    with Called(), Dispatched():
        work()
    return counts


def answer_passes(prompt: list[int], *, speculate: bool = False) -> tuple[int, int, int]:
    """Returns the blocks, denoising steps and passes of one answer of the demo model."""
    config = EngineConfig(device="cpu", threads=1, speculate=speculate)
    denoiser = build_denoiser(config)
    run, passes = denoiser.run, 0

    def counted(works: Any) -> Any:
        nonlocal passes
        passes += 1
        return run(works)

    denoiser.run = counted  # type: ignore[method-assign]  # to count calls
    worker = Worker(denoiser, config)
    request = GenerateRequest("counts", prompt, max_tokens=256, sampling=Sampling(seed=0))
    blocks = [m for m in worker.generate(request) if isinstance(m, Block)]
    return len(blocks), sum(block.denoising_steps for block in blocks), passes


def step_counts() -> dict[str, Counts]:
    """Returns the counts of one denoising step of a model of six layers, for both sides."""
    with tempfile.TemporaryDirectory() as folder:
        denoiser, reference = load_both(write_random_model(Path(folder), SHAPE))
    prompt = random_prompt(SHAPE.vocab, 64)
    steps = {
        "Easel": easel_step(denoiser, prompt),
        "Transformers": transformers_step(reference, prompt),
    }
    for step in steps.values():
        step()
    return {side: count(step, rows=SHAPE.canvas, vocab=SHAPE.vocab) for side, step in steps.items()}


def rows(show: Show = silent) -> Iterator[Row]:
    show("a step of 6 layers")
    for side, counts in step_counts().items():
        yield {"case": f"{side}: a step of 6 layers", **asdict(counts)}
    for canvases, names in ((1, "a canvas"), (2, "two canvases")):
        for product in ("triton", "torch") if find_spec("triton") else ():
            launches = step_launches(released(), canvases=canvases, product=product)
            case = f"Easel: {names} of the released model on a GPU, experts by {product}"
            yield {"case": case, "launches": sum(launches.values())}
    prompt = demo_prompt("Count to 50")
    for case, speculate in {"an answer of the demo model": False, "speculating": True}.items():
        show(case)
        blocks, steps, passes = answer_passes(prompt, speculate=speculate)
        answer = {"blocks": blocks, "steps": steps}
        yield {"case": f"Easel: {case}", **answer, "passes": passes}
    # `generate` encodes the prompt, and every block but the last, in separate passes.
    yield {"case": "Transformers: the same answer", **answer, "passes": steps + blocks}
