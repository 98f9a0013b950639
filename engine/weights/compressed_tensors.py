"""Checkpoints by llm-compressor, in the format of `compressed-tensors`.

A quantised module has `weight` (one number a code) or `weight_packed` (several) beside its
`weight_scale`; a module without either is not quantised. Source: the package's own compressors
(compressed-tensors 0.20), and for which modules have what, RedHatAI's FP8-dynamic and NVFP4
checkpoints of DiffusionGemma. Experts are one module each and a projection.

Activations that were to be quantised as well (FP8 per token, NVFP4) keep their type here.
"""

from typing import Any

import torch
from torch import Tensor

from engine.weights.errors import UnsupportedFormatError
from engine.weights.quantization import QuantizedWeight
from engine.weights.tensor_files import TensorFiles

# What a group of modules may be, by its format.
_ALLOWED: dict[str, dict[str, tuple[Any, ...]]] = {
    "float-quantized": {
        "num_bits": (8,),
        "type": ("float",),
        "symmetric": (True,),
        "strategy": ("channel", "tensor"),
    },
    "int-quantized": {
        "num_bits": (8,),
        "type": ("int",),
        "symmetric": (True,),
        "strategy": ("channel", "tensor"),
    },
    "pack-quantized": {
        "num_bits": (4,),
        "type": ("int",),
        "symmetric": (True,),
        "strategy": ("group", "channel"),
        "actorder": (None, "weight", "static"),  # `group` stores its columns in another order
    },
    "nvfp4-pack-quantized": {
        "num_bits": (4,),
        "type": ("float",),
        "symmetric": (True,),
        "strategy": ("tensor_group",),
        "group_size": (16,),
    },
}


def check(config: dict[str, Any]) -> None:
    """Raises UnsupportedFormatError naming every key of `quantization_config` that is not read."""
    found = []
    for name, group in config.get("config_groups", {}).items():
        key = f"quantization_config.config_groups.{name}"
        layout = group.get("format") or config.get("format")
        if layout not in _ALLOWED:
            found.append(f"{key}.format is {layout!r}; supported: {_either(tuple(_ALLOWED))}")
            continue
        weights = group.get("weights") or {}
        found += [
            f"{key}.weights.{option} is {weights.get(option)!r}; supported: {_either(values)}"
            for option, values in _ALLOWED[layout].items()
            if weights.get(option) not in values
        ]
    if found:
        raise UnsupportedFormatError("; ".join(found))


def read_module(files: TensorFiles, module: str) -> Tensor | QuantizedWeight:
    """A module's weight [N, K] as it is stored. Raises MissingTensorError."""
    if f"{module}.weight_packed" in files:
        codes = files.take(f"{module}.weight_packed")
        return (
            _int4(files, module, codes)
            if codes.dtype is torch.int32
            else _nvfp4(files, module, codes)
        )
    weight = files.take(f"{module}.weight")
    if weight.dtype not in (torch.float8_e4m3fn, torch.int8):
        return weight
    scales = files.take(f"{module}.weight_scale").float()
    scales = scales.reshape(-1, 1).expand(weight.shape[0], 1).contiguous()
    return QuantizedWeight("int8" if weight.dtype is torch.int8 else "fp8", weight, scales)


def _int4(files: TensorFiles, module: str, packed: Tensor) -> QuantizedWeight:
    """Eight codes in an int32, the first lowest, counted from 8: our bytes, in other words."""
    rows, inputs = files.take(f"{module}.weight_shape").tolist()
    codes = packed.view(torch.uint8)[:rows, : inputs // 2]  # of a last word the rest is padding
    return QuantizedWeight("int4", codes, files.take(f"{module}.weight_scale"))


def _nvfp4(files: TensorFiles, module: str, codes: Tensor) -> QuantizedWeight:
    """The second level of scales is stored as what the weights were multiplied by."""
    scales = files.take(f"{module}.weight_scale")
    factor = files.take(f"{module}.weight_global_scale").float().reshape(())
    return QuantizedWeight("nvfp4", codes, scales, None, 1 / factor)


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, values))
