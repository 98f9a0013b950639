"""The stage "model": whole answers of small models, on the GPU and on the CPU.

Sides that compute the same must give the same answers: with and without CUDA graphs, quantised or
not, speculating or not. In bfloat16 two sides may round differently, so a different answer there is
reported but need not be a fault.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoTokenizer

import engine.loading
from bench.gpu.device import DEVICE, TINY, relative_error, sync
from bench.gpu.results import guarded, work_folder, write_row
from bench.passes import decode, encode
from bench.random_model import Shape, write_random_model
from bench.sides import demo_prompt
from engine.config import DEMO_MODEL_PATH, EngineConfig
from engine.denoise import graphs
from engine.denoise.denoiser import Denoiser
from engine.loading import build_denoiser
from engine.messages import Block, GenerateRequest, Sampling
from engine.model.embedding import products
from engine.model.kv_cache import KVCache
from engine.weights.quantization import QuantizedWeight
from engine.worker import Worker

QUESTIONS = ["Count to 30", "What is the capital of France?", "What is 12 + 30?"]

Answers = dict[str, list[int]]  # the tokens of each request's answer, by its id

_STAGE = "model"
_SHAPE = Shape(
    layers="sssssf",
    hidden=128,
    mlp=192,
    window=64,
    query_heads=4,
    kv_heads=2,
    full_kv_heads=1,
    head=32,
    full_head=64,
    experts=8,
    per_token=2,
    expert=64,
    canvas=32,
    vocab=2048,
    positions=2048,
    steps=10,
)
_TINY_SHAPE = dataclasses.replace(
    _SHAPE,
    layers="sf",
    hidden=64,
    mlp=64,
    window=8,
    head=16,
    full_head=32,
    experts=4,
    expert=32,
    canvas=8,
    vocab=160,
    positions=512,
    steps=4,
)
_SAMPLINGS = [
    Sampling(seed=1),
    Sampling(seed=2, temperature=0),
    Sampling(seed=3, temperature=1.5),
    Sampling(seed=4, top_p=0.9),
    Sampling(seed=5, logit_bias={7: 3.0}),
    Sampling(seed=6, min_tokens=20),
]
_QUANTISED: dict[str, dict[str, Any]] = {
    "int8": {"quantize_experts": "int8", "quantize_linears": "int8"},
    "int4": {"quantize_experts": "int4", "quantize_linears": "int4"},
    "fp8, rest int8": {
        "quantize_experts": "fp8",
        "quantize_linears": "fp8",
        "quantize_rest": "int8",
    },
}
_CAPTURES, _EVICTIONS_S = (20, 2) if TINY else (400, 25)  # whichever comes first


def check_small_model() -> None:
    """Compare whole answers and the logits of a step between all sides."""
    with _recorded_captures() as captures_s:
        _Check(captures_s).run()


@contextmanager
def _recorded_captures() -> Iterator[list[float]]:
    """Yields a list to which each capture of a graph inside the block adds its time in seconds.

    Without a GPU everything around the graphs runs, but nothing is captured.
    """
    captures_s: list[float] = []
    capture = graphs.Capture.__call__

    def recorded(self: graphs.Capture, work: graphs.Replay) -> graphs.Replay:
        started = time.perf_counter()
        replay = work if TINY else capture(self, work)
        sync()
        captures_s.append(time.perf_counter() - started)
        return replay

    def use_cuda_graphs(config: EngineConfig, device: torch.device, *, never_waits: bool) -> bool:
        if TINY:
            return config.cuda_graphs == "auto"
        return _use_cuda_graphs(config, device, never_waits=never_waits)

    _use_cuda_graphs = engine.loading.use_cuda_graphs
    with (
        mock.patch.object(graphs.Capture, "__call__", recorded),
        mock.patch.object(engine.loading, "use_cuda_graphs", use_cuda_graphs),
    ):
        yield captures_s


class _Check:
    """The checks of one small model, with the requests that all of its sides answer."""

    def __init__(self, captures_s: list[float]) -> None:
        """Write the model's checkpoint. `captures_s` grows with each capture of a graph."""
        self._captures_s = captures_s
        self._shape = _TINY_SHAPE if TINY else _SHAPE
        self._folder: Path = write_random_model(work_folder() / "small", self._shape)
        generator = torch.Generator().manual_seed(0)
        lengths = [10 + 37 * i * (1 if TINY else 4) for i in range(4 if TINY else 6)]
        self._requests = [
            GenerateRequest(
                str(i),
                torch.randint(6, self._shape.vocab, (length,), generator=generator).tolist(),
                5 * self._shape.canvas,
                _SAMPLINGS[i],
            )
            for i, length in enumerate(lengths)
        ]

    def run(self) -> None:
        on_cpu = guarded(_STAGE, "cpu float32", lambda: self._answers(self._built("cpu")))
        expected = guarded(_STAGE, "cpu logits", lambda: self._logits(self._built("cpu")))
        for dtype in ("float32", "bfloat16"):
            dynamic = guarded(_STAGE, f"{dtype} dynamic", partial(self._dynamic, dtype, expected))
            if dtype == "float32":
                _compare("float32: the GPU without graphs against the CPU", dynamic, on_cpu)
            with_graphs = guarded(_STAGE, f"{dtype} graphs", partial(self._with_graphs, dtype))
            _compare(f"{dtype}: graphs against no graphs", with_graphs, dynamic)
        guarded(_STAGE, "many captures and evictions", self._evictions)
        for name, options in _QUANTISED.items():
            guarded(_STAGE, name, partial(self._quantised, name, options, expected))
        guarded(_STAGE, "speculate", self._speculation)
        guarded(_STAGE, "demo", _demo)

    def _built(self, device: str = DEVICE.type, dtype: str = "float32", **options: Any) -> Denoiser:
        defaults = {
            "model": str(self._folder),
            "device": device,
            "dtype": dtype,
            "max_context": self._shape.positions,
            "max_active": 2,
            "prefill_chunk": 64,
            "quantized_cache": False,
            "prefix_cache_mib": 64,
        }
        return build_denoiser(EngineConfig(**{**defaults, **options}))

    def _answers(self, denoiser: Denoiser, **config: Any) -> Answers:
        return _answers(denoiser, self._requests, **config)

    def _logits(self, denoiser: Denoiser) -> Tensor:
        """Returns the logits [C, V] before the softcap, of a first step behind 100 tokens."""
        model = denoiser.model
        cache = KVCache(
            model.dimensions.layers,
            capacity=256,
            pass_tokens=256,
            dtype=model.dtype,
            device=model.device,
        )
        generator = torch.Generator().manual_seed(5)
        count = 100 + self._shape.canvas
        tokens = torch.randint(6, self._shape.vocab, (count,), generator=generator)
        prompt, canvas = tokens.to(model.device).split([100, self._shape.canvas])
        with torch.inference_mode():
            encode(model, prompt, cache)
            return products(decode(model, canvas, None, cache), model.embedding).float().cpu()

    def _dynamic(self, dtype: str, expected: Tensor | None) -> Answers:
        denoiser = self._built(dtype=dtype, cuda_graphs="off")
        write_row(
            _STAGE,
            case=f"logits {DEVICE.type} {dtype} against cpu float32",
            error=_error(self._logits(denoiser), expected),
            attention=denoiser.model.attention_kernel,
            experts=denoiser.model.each_layer()[0].experts.kernel,
        )
        return self._answers(denoiser)

    def _with_graphs(self, dtype: str) -> Answers:
        self._captures_s.clear()
        denoiser = self._built(dtype=dtype)
        answers = self._answers(denoiser)
        write_row(
            _STAGE,
            case=f"{dtype} with graphs",
            graphs_on=_graphs_on(denoiser),
            captures=len(self._captures_s),
            capture_ms=statistics.median(self._captures_s) * 1e3 if self._captures_s else None,
        )
        return answers

    def _evictions(self) -> None:
        """Run many rounds with room for one graph, so that most captures remove one.

        In torch 2.13 and 2.14, graphs that were captured on one stream lose their cuBLAS workspace
        as soon as one of them is removed (pytorch#193402).
        """
        self._captures_s.clear()
        rounds = identical = 0
        with mock.patch.object(graphs, "MOST_GRAPHS", 1):
            denoiser = self._built(dtype="bfloat16", prefix_cache_mib=0)
            first = self._answers(denoiser)
            deadline = time.monotonic() + _EVICTIONS_S
            while time.monotonic() < deadline and len(self._captures_s) < _CAPTURES:
                rounds += 1
                identical += self._answers(denoiser) == first
        write_row(
            _STAGE,
            case="many captures and evictions",
            ok=identical == rounds,
            rounds_identical=identical,
            rounds=rounds,
            captures=len(self._captures_s),
            graphs_on=_graphs_on(denoiser),
        )

    def _quantised(self, name: str, options: dict[str, Any], expected: Tensor | None) -> None:
        denoiser = self._built(dtype="bfloat16", cuda_graphs="off", **options)
        kernels = {
            weight.kernel
            for module in denoiser.model.modules()
            for weight in vars(module).values()
            if isinstance(weight, QuantizedWeight)
        }
        write_row(
            _STAGE,
            case=f"logits {DEVICE.type} {name} against cpu float32",
            kernels=sorted(kernels),
            error=_error(self._logits(denoiser), expected),
        )
        _compare(
            f"{name}: graphs against no graphs",
            self._answers(self._built(dtype="bfloat16", **options)),
            self._answers(denoiser),
        )

    def _speculation(self) -> None:
        _compare(
            "float32: speculating against not speculating",
            self._answers(self._built(), speculate=True),
            self._answers(self._built()),
        )


def _demo() -> None:
    """Compare the demo model's answers on the CPU and on the device."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH, trust_remote_code=False)
    requests = [
        GenerateRequest(question, demo_prompt(question), 64, Sampling(seed=0))
        for question in QUESTIONS
    ]
    texts: dict[str, dict[str, object]] = {}
    for device, dtype in (("cpu", "float32"), (DEVICE.type, "float32"), (DEVICE.type, "bfloat16")):
        config = EngineConfig.model_validate(
            {"device": device, "dtype": dtype, "max_context": 1024, "max_active": 2}
        )
        denoiser = build_denoiser(config)
        texts[f"{device} {dtype}"] = {
            request.id: tokenizer.decode(
                _answers(denoiser, [request])[request.id], skip_special_tokens=True
            )
            for request in requests
        }
    first = texts["cpu float32"]
    write_row(
        _STAGE,
        case="demo model's answers",
        identical=all(text == first for text in texts.values()),
        texts=texts,
    )


def _answers(denoiser: Denoiser, requests: list[GenerateRequest], **config: Any) -> Answers:
    """Returns the answers of a worker that gets all requests at once."""
    worker = Worker(denoiser, EngineConfig(prefill_chunk=64, max_active=2, **config))
    messages = [message for request in requests for message in worker.handle(request)]
    while not worker.idle:
        messages += worker.step()
    answers: Answers = {request.id: [] for request in requests}
    for message in messages:
        if isinstance(message, Block):
            answers[message.id] += message.tokens
    return answers


def _compare(case: str, actual: Answers | None, expected: Answers | None) -> None:
    """Write whether two sides gave the same answers, unless one of them failed."""
    if actual is None or expected is None:
        return
    first_differences = {
        name: next(
            (i for i, (a, b) in enumerate(zip(tokens, expected[name], strict=False)) if a != b),
            None,
        )
        for name, tokens in actual.items()
    }
    write_row(
        _STAGE,
        case=case,
        identical=actual == expected,
        first_difference=None if actual == expected else first_differences,
        tokens=sum(map(len, actual.values())),
    )


def _error(actual: Tensor, expected: Tensor | None) -> float | None:
    """Returns the relative error, or None if what is expected could not be computed."""
    return None if expected is None else relative_error(actual, expected)


def _graphs_on(denoiser: Denoiser) -> bool:
    return denoiser._graphs is not None and denoiser._graphs.on
