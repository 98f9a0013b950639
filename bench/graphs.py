"""A denoising step in fixed shapes compared with a dynamic one.

On a GPU the step in fixed shapes is captured as a CUDA graph. On a CPU nothing is captured, and the
comparison shows what fixed shapes cost by themselves.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.compare import Row, Show, alternate, of_case, silent
from bench.random_model import write_random_model
from bench.sides import easel_step, random_prompt
from bench.step import CASES
from engine.config import DEMO_MODEL_PATH, EngineConfig
from engine.denoise.graphs import Graphs
from engine.loading import build_denoiser

COLUMNS = ["fixed_ms", "dynamic_ms", "ratio"]
_CASES = (
    "demo model",
    "30 layers x 128 experts",
    "d=1024, 6 layers, prefix 1024",
    "d=512, 12 layers, prefix 6000",
)


def rows(rounds: int, show: Show = silent) -> Iterator[Row]:
    for case in _CASES:
        show_case = of_case(show, case)
        show_case("loading the model")
        shape, length = CASES[case]
        with tempfile.TemporaryDirectory() as folder:
            path = DEMO_MODEL_PATH if shape is None else write_random_model(Path(folder), shape)
            config = EngineConfig(
                model=str(path), max_context=8192, threads=1, max_active=1, cuda_graphs="off"
            )
            dynamic, fixed = build_denoiser(config), build_denoiser(config)
        model = fixed.model
        capture = model.device.type == "cuda"
        fixed._graphs = Graphs(model, canvases=1, capture=capture)
        prompt = random_prompt(model.dimensions.vocab_size, length)
        show_case("encoding the prompt")
        steps = easel_step(fixed, prompt), easel_step(dynamic, prompt)
        times = alternate(*steps, rounds=rounds, show=show_case)
        assert fixed._graphs.on, "the passes were dynamic; the log says why"
        yield {
            "case": f"{case}, {'a CUDA graph' if capture else 'not captured'}",
            "fixed_ms": times.pop("easel_ms"),
            "dynamic_ms": times.pop("transformers_ms"),
            **times,
        }
