"""A whole denoising step compared with Transformers', for models of several shapes."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.compare import COMPARED, Row, Show, alternate, of_case, silent
from bench.random_model import Shape, write_random_model
from bench.sides import easel_step, load_both, random_prompt, transformers_step
from engine.config import DEMO_MODEL_PATH

COLUMNS = COMPARED
_WIDE = {"canvas": 256, "window": 1024, "positions": 8192, "steps": 48}


def _shape(width: int, layers: str, vocab: int) -> Shape:
    return Shape(
        layers=layers,
        hidden=width,
        mlp=2 * width,
        head=64,
        full_head=128,
        expert=width // 2,
        vocab=vocab,
        **_WIDE,
    )


# Name: the model's shape and the prompt's length. The vocabulary tail matters most in the first two
# cases and least in the others, which have many layers and experts, wide layers or a long prefix.
CASES = {
    "d=256, V=262144": (_shape(256, "sf", 262144), 64),
    "d=512, V=262144": (_shape(512, "sf", 262144), 64),
    "demo model": (None, 64),
    "30 layers x 128 experts": (
        Shape(layers="sssssf" * 5, hidden=64, experts=128, per_token=8, vocab=1024, **_WIDE),
        64,
    ),
    "d=1024, 6 layers, prefix 1024": (_shape(1024, "sssssf", 4096), 1024),
    "d=512, 12 layers, prefix 6000": (_shape(512, "sssssf" * 2, 4096), 6000),
}


def rows(rounds: int, cases: tuple[str, ...] = tuple(CASES), show: Show = silent) -> Iterator[Row]:
    for case in cases:
        shape, length = CASES[case]
        show_case = of_case(show, case)
        show_case("loading the model")
        with tempfile.TemporaryDirectory() as folder:
            path = DEMO_MODEL_PATH
            if shape is not None:
                path = write_random_model(Path(folder), shape)
            denoiser, reference = load_both(path, max_context=8192)
        prompt = random_prompt(denoiser.model.dimensions.vocab_size, length)
        show_case("encoding the prompt")
        ours, theirs = easel_step(denoiser, prompt), transformers_step(reference, prompt)
        yield {"case": case, **alternate(ours, theirs, rounds=rounds, show=show_case)}
