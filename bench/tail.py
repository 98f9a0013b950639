"""The vocabulary tail alone, at the released vocabulary and canvas, against Transformers."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.compare import COMPARED, Row, Show, alternate, of_case, silent
from bench.random_model import Shape, new_random_model
from bench.sides import STEP, transformers_step, transformers_tail
from engine.denoise.sampler import SamplerConfig, accept
from engine.sizing.chunks import VOCAB_CHUNK
from engine.tail.vocab_tail import draw, vocab_tail

COLUMNS = [*COMPARED, "bound"]
CANVAS, VOCAB, SOFTCAP = 256, 262144, 30.0
WIDTHS = (256, 512, 2816)


def rows(rounds: int, widths: tuple[int, ...] = WIDTHS, show: Show = silent) -> Iterator[Row]:
    for width in widths:
        show_case = of_case(show, f"d={width}")
        show_case("making the model")
        shape = Shape(layers="f", hidden=width, canvas=CANVAS, vocab=VOCAB, steps=48)
        model = new_random_model(shape)
        hidden = torch.randn(CANVAS, width, generator=torch.Generator().manual_seed(0)) * 2
        embedding = model.model.decoder.embed_tokens.weight.detach()
        theirs = transformers_step(model, [7], transformers_tail(model, hidden[None]))
        row = alternate(_easel_tail(hidden, embedding), theirs, rounds=rounds, show=show_case)
        products = _products(hidden, embedding)
        show_bound = of_case(show_case, "the products alone")
        bound = alternate(products, products, rounds=3, show=show_bound)["easel_ms"]
        yield {
            "case": f"d={width}",
            **row,
            "products_ms": bound,
            "bound": row["transformers_ms"] / bound,
        }


def _easel_tail(hidden: Tensor, embedding: Tensor) -> Callable[[], object]:
    sampler = SamplerConfig()
    temperatures = torch.full((CANVAS,), sampler.temperature(STEP))
    uniforms = torch.rand(CANVAS, generator=torch.Generator().manual_seed(1))

    @torch.inference_mode()
    def run() -> None:
        tail = vocab_tail(hidden, embedding, temperatures, softcap=SOFTCAP, embedding_scale=16.0)
        accepted = accept(tail.entropy[None], [sampler])[0]
        draw(tail, hidden, embedding, temperatures, uniforms, accepted, softcap=SOFTCAP)

    return run


def _products(hidden: Tensor, embedding: Tensor) -> Callable[[], object]:
    """Returns a function with the tail's two products alone, in chunks too: a lower bound."""

    @torch.inference_mode()
    def run() -> None:
        soft = torch.zeros_like(hidden)
        for part in embedding.split(VOCAB_CHUNK):
            soft.addmm_(F.linear(hidden, part), part)

    return run
