"""A network of any shape with random weights, made where it runs and in the form that it runs in.

For what only depends on the shape: speed and memory. Nothing is written or read, and there is
never more than the network: each weight's room is taken in its own form and then filled, a
quantised one with random codes, so that a model of 4 bits is never one of 16.

The values are those of `bench/random_model.py`, by the same names.
"""

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bench.random_model import fill
from engine.config import Formats
from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig, Rope
from engine.model.weight_map import scheme, weight_targets
from engine.sizing.dimensions import Dimensions
from engine.weights.quantization import FromDense, QuantizedWeight, Weight, empty_quantized

# Of logits: far from the softcap, and neither flat nor certain after it.
LOGITS_STD = 2.8


def network_config(dimensions: Dimensions) -> ModelConfig:
    """The network of these dimensions; what they do not say is the released model's.

    That is the default of transformers' `DiffusionGemmaTextConfig`.
    """
    return ModelConfig(
        dimensions,
        norm_eps=1e-6,
        softcap=30.0,
        sliding_rope=Rope(10_000.0),
        full_rope=Rope(1_000_000.0, 0.25),
        bidirectional_images=True,
    )


def random_network(
    config: ModelConfig,
    *,
    formats: Formats,
    device: torch.device,
    dtype: torch.dtype,
    title: str,
) -> DiffusionGemma:
    """What is not quantised is in `dtype`; a line on stderr tells how far it is.

    Raises UnquantizableError if a weight's shape has no place in its scheme.
    """
    generator = torch.Generator(device).manual_seed(0)
    with torch.device("meta"):
        network = DiffusionGemma(config)
    embedding_std = LOGITS_STD * config.dimensions.hidden_size**-0.5
    targets_left = track(
        weight_targets(network),
        f"{title}: random weights",
        transient=True,
        console=Console(stderr=True),
    )
    for target in targets_left:
        asked = scheme(target.kind, formats)
        if asked is None:
            weight: Weight = torch.empty(target.shape, device=device, dtype=dtype)
            fill(target.name, weight, generator, embedding_std=embedding_std)
        else:
            std = embedding_std if target.kind == "embedding" else target.shape[-1] ** -0.5
            weight = _random_quantized(target.shape, asked, std, generator)
        target.put(weight)
    # The embedding is also the lm_head: in a model of few layers each position would be certain of
    # the token that it has, if what comes out pointed where that went in.
    network.norm.weight.mul_(_signs(network.norm.weight, generator))
    return network.requires_grad_(False).eval()


def weights_bytes(network: DiffusionGemma) -> int:
    """Of all its weights as they are held."""
    return sum(
        getattr(target.module, target.attribute).nbytes for target in weight_targets(network)
    )


def _random_quantized(
    shape: torch.Size, asked: FromDense, std: float, generator: torch.Generator
) -> QuantizedWeight:
    """[N, K] or [E, N, K] of random codes, scaled to what `fill` gives a dense one.

    Half of the scales are negative, since int4's codes are not centred on their zero.
    """
    weight = empty_quantized(shape, asked, generator.device)
    allowed = 0xFE if asked == "fp8" else 0xFF  # 0x7F and 0xFF are NaN
    codes = weight.codes.view(torch.uint8)
    codes.random_(0, 256, generator=generator)
    codes &= allowed
    each = (torch.arange(256, dtype=torch.uint8) & allowed)[None]
    plain = QuantizedWeight(asked, each.view(weight.codes.dtype), torch.ones(1, 1))
    codes_std = float(plain.dequantize(torch.float32).square().mean().sqrt())
    weight.scales.copy_(_signs(weight.scales, generator)).mul_(std / codes_std)
    return weight


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """1 or -1, as often each."""
    return torch.empty_like(like).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
