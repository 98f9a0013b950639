"""Checkpoints by llm-compressor, in the format of `compressed-tensors`.

A quantised module has a `weight_scale` beside `weight` (one code per element, float8_e4m3fn or
int8) or `weight_packed` (several codes per element). A module whose `weight` has another type is
not quantised. Each projection of each expert is a module of its own.

The checkpoints may ask for quantised activations as well (FP8 per token, NVFP4). Activations keep
their type here.

Sources: the compressors of compressed-tensors 0.20 for the layout, and RedHatAI's FP8-dynamic and
NVFP4 checkpoints of DiffusionGemma for which modules are quantised.
"""

from typing import Any

import torch
from torch import Tensor

from engine.weights.errors import UnsupportedFormatError
from engine.weights.quantization import QuantizedWeight, repack
from engine.weights.tensor_files import TensorFiles

# The supported values of a group's weight options, by the group's format.
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
    """Raises UnsupportedFormatError if `quantization_config` asks for anything unsupported.

    The error names every unsupported key.
    """
    errors = []
    for name, group in _object(config.get("config_groups"), "config_groups").items():
        key = f"quantization_config.config_groups.{name}"
        group = _object(group, f"config_groups.{name}")
        layout = group.get("format") or config.get("format")
        if layout not in tuple(_ALLOWED):
            errors.append(f"{key}.format is {layout!r}; supported: {_either(tuple(_ALLOWED))}")
            continue
        weights = _object(group.get("weights"), f"config_groups.{name}.weights")
        errors += [
            f"{key}.weights.{option} is {weights.get(option)!r}; supported: {_either(values)}"
            for option, values in _ALLOWED[layout].items()
            if weights.get(option) not in values
        ]
    if errors:
        raise UnsupportedFormatError("; ".join(errors))


def read_module(files: TensorFiles, module: str) -> Tensor | QuantizedWeight:
    """Returns a module's weight [N, K] as it is stored.

    Raises MissingTensorError if one of its tensors is in no file.
    """
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
    """Read eight codes per int32, the first in the lowest bits, where the code 8 stands for 0.

    On a little-endian machine each byte holds two consecutive codes.
    """
    rows, inputs = files.take(f"{module}.weight_shape").tolist()
    codes = packed.view(torch.uint8)[:rows, : inputs // 2]  # the last word may be padded
    return QuantizedWeight("int4", repack(codes), files.take(f"{module}.weight_scale"))


def _nvfp4(files: TensorFiles, module: str, codes: Tensor) -> QuantizedWeight:
    """Read e2m1 codes with two levels of scales.

    The checkpoint stores the factor by which the weights were multiplied. Its inverse is
    `global_scale`.
    """
    scales = files.take(f"{module}.weight_scale")
    factor = files.take(f"{module}.weight_global_scale").float().reshape(())
    return QuantizedWeight("nvfp4", repack(codes), scales, None, 1 / factor)


def _object(value: Any, key: str) -> dict[str, Any]:
    """Returns a JSON object, which is empty for None.

    Raises UnsupportedFormatError if it is something else.
    """
    if value is not None and not isinstance(value, dict):
        raise UnsupportedFormatError(
            f"quantization_config.{key} is {value!r}; it must be an object"
        )
    return value or {}


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, values))
