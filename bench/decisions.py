"""Decisions against passes: how long one takes behind a kept prefix, and twenty, and eight at once.

The network has the released model's kinds of layers in a small size and random weights, and a whole
canvas. A pass is a denoising step of an answer behind the same prefix: the network and the whole
vocabulary tail. A decision is timed from its message to its result, with the tokens of its
questions encoded in the same pass. The last case asks the demo model the same question by chat.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from bench.compare import Row, Show, of_case, silent
from bench.random_model import Shape, write_random_model
from bench.sides import demo_prompt, random_prompt
from engine.config import EngineConfig
from engine.denoise.denoiser import Denoiser
from engine.loading import build_denoiser
from engine.messages import Cancel, Decision, GenerateRequest, LabelSlot, Read, Sampling
from engine.worker import Worker

COLUMNS = ["decision_ms", "other_ms", "decisions_s", "ratio"]
CONTEXT, QUESTION_TOKENS, LINE_TOKENS, LABELS = 1024, 12, 5, 4
JOINT, AT_ONCE = 20, 8
SHAPE = Shape(
    layers="sssssf" * 2,
    hidden=256,
    mlp=512,
    head=32,
    full_head=64,
    window=512,
    canvas=128,
    vocab=8192,
    positions=8192,
    steps=48,
    confidence_threshold=1e-9,  # so that an answer goes on for as many passes as are timed
)


def rows(rounds: int, show: Show = silent) -> Iterator[Row]:
    show("making the model")
    with tempfile.TemporaryDirectory() as folder:
        path = str(write_random_model(Path(folder), SHAPE))
        config = EngineConfig(model=path, threads=1, max_active=AT_ONCE, max_context=2048)
        denoiser = build_denoiser(config)
    prompt = random_prompt(SHAPE.vocab, CONTEXT)
    separate = [read(1) for _ in range(JOINT)]
    passes = _Passes(denoiser, config, prompt)
    cases: list[tuple[str, int, Callable[[], object], Callable[[], object]]] = [
        ("one against a pass", 1, _decide(denoiser, config, prompt, [read(1)]), passes),
        (
            f"{JOINT} joint against a pass",
            JOINT,
            _decide(denoiser, config, prompt, [read(JOINT)]),
            passes,
        ),
        (
            f"{JOINT} joint, their text kept, against a pass",
            JOINT,
            _decide(denoiser, config, prompt, [kept(read(JOINT))]),
            passes,
        ),
        (
            f"{JOINT} joint against {JOINT} separate",
            JOINT,
            _decide(denoiser, config, prompt, [read(JOINT)]),
            _decide(denoiser, config, prompt, separate),
        ),
        (
            f"{AT_ONCE} at once against one",
            AT_ONCE,
            _decide(denoiser, config, prompt, [read(1)], AT_ONCE),
            _decide(denoiser, config, prompt, [read(1)]),
        ),
    ]
    for case, decisions, ours, theirs in cases:
        yield _row(case, decisions, ours, theirs, rounds, show)
    demo = EngineConfig(model="demo", device="cpu", threads=1)
    small = build_denoiser(demo)
    question = demo_prompt("Is Paris the capital of France?")
    canvas = small.model.dimensions.canvas_length
    one = Read(question[-9:], [10] * min(canvas, LINE_TOKENS), [LabelSlot(3, [11, 12])])
    yield _row(
        "demo model, one against max_tokens 1",
        1,
        _decide(small, demo, question[:-9], [one]),
        _chat(small, demo, question),
        rounds,
        show,
    )


def read(questions: int) -> Read:
    """Returns a read of a canvas with so many questions."""
    tokens = random_prompt(SHAPE.vocab, questions * max(QUESTION_TOKENS, LINE_TOKENS))
    slots = [
        LabelSlot(LINE_TOKENS * (number + 1) - 1, tokens[:LABELS]) for number in range(questions)
    ]
    return Read(tokens[: questions * QUESTION_TOKENS], tokens[: questions * LINE_TOKENS], slots)


def kept(of: Read) -> Read:
    """Returns a read whose prompt is in the kept prefix, but for one token."""
    return Read(of.prompt[:1], of.canvas, of.slots)


class _Passes:
    """An answer behind a prompt, of which each call makes one pass."""

    def __init__(self, denoiser: Denoiser, config: EngineConfig, prompt: list[int]) -> None:
        self._worker = Worker(denoiser, config)
        self._prompt, self._left = prompt, 0

    def __call__(self) -> None:
        """Make a pass. Where a block would end, the answer begins again, which is not timed."""
        self._worker.step()
        self._left -= 1

    def prepare(self) -> None:
        """Make sure that the next pass is a denoising step and nothing else."""
        if self._left < 2:
            self.end()
            sampling = Sampling(seed=0, ignore_eos=True)
            self._worker.handle(GenerateRequest("answer", self._prompt, SHAPE.canvas, sampling))
            self._worker.step()
            self._worker.step()
            self._left = SHAPE.steps - 2

    def end(self) -> None:
        """Cancel the answer, which frees its cache."""
        self._worker.handle(Cancel("answer"))
        self._left = 0


def _decide(
    denoiser: Denoiser,
    config: EngineConfig,
    prompt: list[int],
    reads: list[Read],
    requests: int = 1,
) -> Callable[[], None]:
    """Returns a function that makes so many equal decisions at once."""
    worker, number = Worker(denoiser, config), 0

    def decide() -> None:
        nonlocal number
        for _ in range(requests):
            number += 1
            longest = max(len(each.prompt) for each in reads)
            decision = Decision(reads)
            worker.handle(
                GenerateRequest(str(number), prompt, longest, Sampling(0), decision=decision)
            )
        while not worker.idle:
            worker.step()

    return decide


def _chat(denoiser: Denoiser, config: EngineConfig, prompt: list[int]) -> Callable[[], None]:
    """Returns a function that makes an answer of one token."""
    worker = Worker(denoiser, config)

    def answer() -> None:
        list(worker.generate(GenerateRequest("chat", prompt, 1, Sampling(0))))

    return answer


def _row(
    case: str,
    decisions: int,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    show: Show,
) -> Row:
    """Returns a row of both sides, which run alternately. The ratio is ours to theirs."""
    show_case = of_case(show, case)
    times: list[tuple[float, float]] = []
    for turn in range(rounds + 1):  # the first turn warms up
        show_case(f"round {turn} of {rounds}" if turn else "warming up")
        times.append((_seconds(ours), _seconds(theirs)))
    if isinstance(theirs, _Passes):
        theirs.end()
    own, other = ([pair[side] for pair in times[1:]] for side in (0, 1))
    pairs = [a / b for a, b in zip(own, other, strict=True)]
    return {
        "case": case,
        "decision_ms": median(own) * 1e3,
        "other_ms": median(other) * 1e3,
        "decisions_s": decisions / median(own),
        "ratio": median(own) / median(other),
        "ratio_low": min(pairs),
        "ratio_high": max(pairs),
    }


def _seconds(work: Callable[[], object]) -> float:
    if isinstance(work, _Passes):
        work.prepare()
    started = perf_counter()
    work()
    return perf_counter() - started
