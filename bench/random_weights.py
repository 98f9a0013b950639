"""Makes a network of any shape with random weights, on its device and in its final formats.

It serves to measure speed and memory, which depend on the shape only. Nothing is written or read,
and no more memory is used than for the network itself. Each weight is allocated in its final format
and then filled, a quantised one with random codes, so that a 4-bit model never exists in 16 bits.

The values are distributed as in `bench/random_model.py`, by the same names.
"""

import torch
from torch import Tensor

from bench.compare import Show, silent
from bench.random_model import fill
from engine.config import Formats
from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig, Rope
from engine.model.weight_map import scheme, weight_targets
from engine.sizing.dimensions import Dimensions
from engine.weights.quantization import FromDense, QuantizedWeight, empty_quantized

# The logits' standard deviation: far below the softcap, and neither flat nor certain after it.
LOGITS_STD = 2.8


def network_config(dimensions: Dimensions) -> ModelConfig:
    """Returns the configuration of a network of these dimensions.

    All other values are those of the released model, which are the defaults of Transformers'
    `DiffusionGemmaTextConfig`.
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
    show: Show = silent,
) -> DiffusionGemma:
    """Returns a network of random weights, with the unquantised ones in `dtype`.

    `show` is given the progress. Raises UnquantizableError if a weight's shape does not suit its
    scheme.
    """
    generator = torch.Generator(device).manual_seed(0)
    with torch.device("meta"):
        network = DiffusionGemma(config)
    embedding_std = LOGITS_STD * config.dimensions.hidden_size**-0.5
    targets = weight_targets(network)
    for index, target in enumerate(targets):
        show(f"random weights, {100 * index // len(targets)} %")
        weight_scheme = scheme(target.kind, formats)
        if weight_scheme is None:
            weight = torch.empty(target.shape, device=device, dtype=dtype)
            fill(target.name, weight, generator, embedding_std=embedding_std)
            target.put(weight)
        else:
            std = embedding_std if target.kind == "embedding" else target.shape[-1] ** -0.5
            target.put(random_quantized(target.shape, weight_scheme, std, generator))
    # The embedding is also the lm_head. In a model of few layers the last hidden states still point
    # towards the embeddings of their own tokens, so every position would be certain of its token.
    # Random signs prevent that.
    network.norm.weight.mul_(_signs(network.norm.weight, generator))
    return network.requires_grad_(False).eval()


def weights_bytes(network: DiffusionGemma) -> int:
    """Returns the bytes of all its weights as they are held."""
    return sum(
        getattr(target.module, target.attribute).nbytes for target in weight_targets(network)
    )


def random_quantized(
    shape: torch.Size, weight_scheme: FromDense, std: float, generator: torch.Generator
) -> QuantizedWeight:
    """Returns a weight [N, K] or [E, N, K] of random codes with this standard deviation.

    Half of the scales are negative, because int4's codes are not centred on their zero.
    """
    weight = empty_quantized(shape, weight_scheme, generator.device)
    allowed = 0xFE if weight_scheme == "fp8" else 0xFF  # in fp8 the codes 0x7F and 0xFF are NaN
    codes = weight.codes.view(torch.uint8)
    codes.random_(0, 256, generator=generator)
    codes &= allowed
    each = (torch.arange(256, dtype=torch.uint8) & allowed)[None]
    plain = QuantizedWeight(weight_scheme, each.view(weight.codes.dtype), torch.ones(1, 1))
    codes_std = float(plain.dequantize(torch.float32).square().mean().sqrt())
    weight.scales.copy_(_signs(weight.scales, generator)).mul_(std / codes_std)
    return weight


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Returns random numbers 1 and -1 of equal probability, in the shape and type of `like`."""
    return torch.empty_like(like).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
