"""A denoising step on a GPU that this machine need not have: nothing in it makes the host wait.

Tensors are on the meta device: they have a shape and a type, but no numbers, so that whatever reads
a number or depends on one fails. Triton's launches are only counted.
"""

from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.denoise import denoising_step, graphs
from engine.denoise.denoiser import Denoiser
from engine.denoise.sampler import SamplerConfig
from engine.kernels import block_noise, prefix_attention, vocab_draw, vocab_statistics
from engine.kernels import grouped_linear as grouped_linear_module
from engine.messages import GenerateRequest, Sampling
from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig, Rope
from engine.model.experts import Experts
from engine.schedule.sequence import Sequence, Work
from engine.sizing.dimensions import Dimensions, LayerShape

CANVAS, VOCAB, STEPS = 16, 1280, 8
MOST_LAUNCHES = 40  # of a step behind the network; a change that needs more must say why
KERNELS = (
    (grouped_linear_module, "_kernel"),
    (prefix_attention, "_kernel"),
    (vocab_statistics, "_kernel"),
    (vocab_draw, "_group_kernel"),
    (vocab_draw, "_truncated_kernel"),
    (block_noise, "_kernel"),
)


class Launched:
    """Stands in for a kernel, and counts its launches."""

    def __init__(self, name, counts):
        self._name, self._counts = name, counts

    def __getitem__(self, _grid):
        def launch(*_args, **_options):
            self._counts[self._name] += 1

        return launch


def storages(values):
    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    return {tensor.untyped_storage()._cdata for tensor in tensors}


class Sent(TorchFunctionMode):
    """Names the calls that make a tensor on the device of numbers that the host has."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy):
            self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Watched(TorchDispatchMode):
    """Counts the operations that write a tensor, and names those between two devices."""

    def __init__(self):
        super().__init__()
        self.written = Counter()
        self.sent = Sent()
        self.between = []

    def __enter__(self):
        self.sent.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.sent.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if len({tensor.device for tensor in tensors if tensor.dim() or "copy" in str(func)}) > 1:
            self.between.append(str(func))
        new = storages(result) - storages((args, kwargs))
        if (new or func._schema.is_mutable) and "empty" not in str(func):
            self.written[str(func)] += 1
        return result

    @property
    def copies(self):
        return self.sent.calls + self.between


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.zeros(4).to(x.device),
        lambda x: x.copy_(torch.zeros(4)),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: float(x[0]),
        lambda x: x.to("cpu"),
    ],
)
def test_waits_are_found(wait):
    with Watched() as watched:
        try:
            wait(torch.empty(4, device="meta"))
        except (NotImplementedError, RuntimeError) as error:
            assert "meta" in str(error).lower()  # noqa: PT017  # either this or a copy is found
        else:
            assert len(watched.copies) > 0


@pytest.fixture
def launched(monkeypatch):
    counts = Counter()
    for module, name in KERNELS:
        stand_in = Launched(f"{module.__name__.rsplit('.', 1)[1]}{name}", counts)
        monkeypatch.setattr(module, name, stand_in)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    return counts


@pytest.fixture
def reports(monkeypatch):
    """Collects what the host waits for. No canvas is done."""
    shapes = []

    def to_host(report):
        shapes.append(tuple(report.shape))
        return [[1.0] + [7.0] * (report.shape[1] - 1)] * report.shape[0]

    monkeypatch.setattr(denoising_step, "to_host", to_host)
    return shapes


def model():
    layers = (LayerShape(2, 16, 16), LayerShape(1, 32, None))
    dimensions = Dimensions(
        vocab_size=VOCAB,
        hidden_size=32,
        mlp_size=64,
        query_heads=4,
        layers=layers,
        experts=4,
        experts_per_token=2,
        expert_size=32,
        canvas_length=CANVAS,
        max_positions=512,
        tower=None,
        quantized=False,
    )
    config = ModelConfig(
        dimensions,
        norm_eps=1e-6,
        softcap=30.0,
        sliding_rope=Rope(1e4),
        full_rope=Rope(1e6, 0.25),
        bidirectional_images=False,
    )
    with torch.device("meta"):
        made = DiffusionGemma(config).bfloat16()
    made.__dict__["embedding_scale"] = 5.0  # otherwise a tensor's value is read, once
    made.attention_kernel = "triton"
    for module in made.modules():
        if isinstance(module, Experts):
            module.kernel = "triton"
    return made


class Replayed:
    """Stands in for `Capture`. A replay runs the work again."""

    def __call__(self, work):
        return work


@pytest.fixture
def denoiser(launched, monkeypatch):
    monkeypatch.setattr(graphs, "Capture", Replayed)
    monkeypatch.setattr(denoising_step, "GPU", "meta")
    with torch.inference_mode():
        denoiser = Denoiser(
            model(),
            SamplerConfig(max_denoising_steps=STEPS, end_tokens=frozenset({3, 5}), early_end=True),
            context_length=128,
            prefill_chunk=64,
            max_active=3,
            cuda_graphs=True,
            speculate=True,
        )
        assert denoiser._step.kernel == "triton", "the trial of the kernels failed"
        denoiser.prepare()
        assert denoiser.captured_graphs == 31
        yield denoiser


def started(denoiser, sampling, number):
    """Returns a sequence that has had the first step of its first block."""
    prompt = [*range(6, 16 + number)]
    request = GenerateRequest(f"{number}", prompt, max_tokens=60, sampling=sampling)
    sequence = Sequence.start(request)
    sequence.reuse(denoiser.start(sequence))
    work = sequence.next_work(64)
    (step,) = denoiser.run([work])
    sequence.record(work, step)
    return sequence


SAMPLINGS = {
    "nothing": [Sampling(0)],
    "greedy": [Sampling(0, temperature=0)],
    "cold": [Sampling(0, temperature=0.01)],
    "cuts": [Sampling(0, top_p=0.9, top_k=20, min_p=0.01)],
    "a bias": [Sampling(0, logit_bias={7: 1.0}, repetition_penalty=1.2, min_tokens=5)],
    "three": [
        Sampling(0),
        Sampling(1, top_p=0.9, logit_bias={7: 1.0}, entropy_bound=0.3),
        Sampling(2, temperature=0.5, max_denoising_steps=5, confidence_threshold=0.1),
    ],
    "qualities": [Sampling(0), Sampling(1, quality="balanced"), Sampling(2, quality="fast")],
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_step_waits_once_at_its_end_whatever_requests_ask_for(denoiser, reports, name):
    sequences = [started(denoiser, each, n) for n, each in enumerate(SAMPLINGS[name])]
    reports.clear()
    with Watched() as watched:
        denoiser.run([Work(sequence, [], denoise=True) for sequence in sequences])
    assert watched.copies == []
    assert reports == [(len(sequences), 1 + 2 * CANVAS)]
    assert watched.written.total() > 50


def test_drafts_come_with_the_copy_that_each_step_makes_anyway(denoiser, reports):
    """They add what the copy is joined of, and nothing else that is launched."""
    launches = []
    for every in (0, 0, 1):  # the first pass of its kind makes its graph
        sequences = [started(denoiser, Sampling(n, drafts_every=every * n), n) for n in range(2)]
        reports.clear()
        with Watched() as watched:
            results = denoiser.run([Work(sequence, [], denoise=True) for sequence in sequences])
        assert watched.copies == []
        launches.append(watched.written.total())
        columns = 1 + (2 + every) * CANVAS
        assert reports == [(2, columns)]
        assert [result.accepted is not None for result in results] == [False, every == 1]
        for sequence in sequences:
            denoiser.release(sequence, keep=False)
    assert launches[2] == launches[1]


@pytest.mark.parametrize("kind", ["commit", "speculate"])
def test_a_pass_that_commits_waits_only_before_it_begins(denoiser, reports, kind, monkeypatch):
    """The host copies the committed tokens to the device before the first launch."""
    sequence = started(denoiser, Sampling(0), 0)
    block = list(range(10, 10 + CANVAS))
    if kind == "commit":
        denoiser._slots[sequence].canvas = None
        work = Work(sequence, block, denoise=True)
    else:
        work = Work(sequence, [], denoise=True, speculation=block)
    run, watched = denoiser._run_model, Watched()
    watching = []

    def watched_run(*args):
        watching.append(watched.__enter__())
        return run(*args)

    monkeypatch.setattr(denoiser, "_run_model", watched_run)
    monkeypatch.setattr(denoiser.model, "run", None)  # it would be a dynamic pass
    reports.clear()
    try:
        denoiser.run([work])
    finally:
        watched.__exit__(None, None, None)
    assert watched.copies == []
    assert len(reports) == 1


@pytest.mark.parametrize("quality", ["exact", "balanced", "fast"])
def test_launches_of_a_step_behind_the_network(denoiser, reports, launched, quality):
    """What the host launches for the tail and the sampler while the graph runs."""
    sequence = started(denoiser, Sampling(0, quality=quality), 0)
    canvas = denoiser._slots[sequence].canvas
    hidden = torch.empty(CANVAS, 32, dtype=torch.bfloat16, device="meta")
    launched.clear()
    with Watched() as watched:
        denoiser._step.run(hidden, [canvas])
    assert launched == {"vocab_statistics_kernel": 1, "vocab_draw_group_kernel": 1}
    assert watched.written.total() + launched.total() <= MOST_LAUNCHES, watched.written
