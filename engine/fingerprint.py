"""A fingerprint of what an answer depends on beside its request: weights, numbers and settings.

Two workers with the same fingerprint give the same answers to the same requests, as far as their
device does. The weights themselves are sampled, in the form in which they are multiplied. So it
makes no difference where a model was loaded from, but every format has a fingerprint of its own.
"""

import dataclasses
import json
from collections.abc import Iterator
from hashlib import blake2b

import torch
from torch import Tensor, nn

from engine.config import EngineConfig
from engine.denoise.denoiser import Denoiser
from engine.device import device_name
from engine.weights.quantization import QuantizedWeight, StackedWeight

_SAMPLES = 64  # elements of each tensor that are read, at even distances
# These say where the model comes from and how much of it runs at once, not what it computes. What
# the others of them come to is in the model itself.
_WITHOUT_EFFECT = {
    "model",
    "revision",
    "gguf",
    "profile",
    "device",
    "dtype",
    "quantized_cache",
    "quantized_cache_gb",
    "max_active",
    "cuda_graphs",
    "prefix_cache_mib",
    "threads",
}


@torch.inference_mode()
def fingerprint(denoiser: Denoiser, config: EngineConfig) -> str:
    """Returns the fingerprint of a loaded model and its settings, 16 hexadecimal digits."""
    digest = blake2b(digest_size=8)
    settings = {
        "torch": torch.__version__,
        "device": device_name(denoiser.model.device),
        "context": denoiser.context_length,
        "sampler": dataclasses.asdict(denoiser.sampler),
        "settings": config.model_dump(exclude=_WITHOUT_EFFECT),
    }
    digest.update(json.dumps(settings, sort_keys=True, default=_plain).encode())
    modules = [denoiser.model] if denoiser.vision is None else [denoiser.model, denoiser.vision]
    for module in modules:
        for name, tensor in _tensors(module):
            flat = tensor.reshape(-1)
            sample = flat[:: max(1, len(flat) // _SAMPLES)].clone().view(torch.uint8)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the model's weights by name, a quantised one as its codes and scales."""
    for path, module in model.named_modules():
        for name, value in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
            *vars(module).items(),
        ]:
            for part, tensor in _parts(value):
                yield f"{path}.{name}{part}", tensor


def _parts(value: object) -> Iterator[tuple[str, Tensor]]:
    match value:
        case Tensor():
            yield "", value
        case QuantizedWeight():
            for name, tensor in value.tensors().items():
                yield f".{name}", tensor
        case StackedWeight():
            for index, part in enumerate(value.parts):
                for name, tensor in _parts(part):
                    yield f".{index}{name}", tensor


def _plain(value: object) -> object:
    """Returns a set as a list, and anything else that JSON lacks as text."""
    return sorted(value) if isinstance(value, frozenset) else repr(value)
