"""Which published format a checkpoint is in, and how a weight of ours is read from it.

A format is a function from a module's name to its weight as it is stored, [N, K]. The experts of a
layer are one module in the unquantised checkpoint and one module each and a projection in the
quantised ones, but for GoedelMachines'.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.sizing.dimensions import MODELOPT_FILE, W4_FILE
from engine.weights import compressed_tensors, dg_w4a16, modelopt
from engine.weights.errors import UnsupportedFormatError
from engine.weights.quantization import (
    QuantizedWeight,
    UnquantizableError,
    Weight,
    stack,
    stack_experts,
)
from engine.weights.tensor_files import TensorFiles

ReadModule = Callable[[TensorFiles, str], Tensor | QuantizedWeight]

# Scales of activations and caches, which here keep their type.
_ACTIVATIONS = (".input_scale", ".input_global_scale", ".k_scale", ".v_scale", ".output_scale")
_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_STORED = ("weight", "weight_packed")  # what a module's weight is called


def find_format(folder: Path, quantization: dict[str, Any] | None) -> ReadModule:
    """By config.json's `quantization_config`, ModelOpt's own file or GoedelMachines'.

    A checkpoint that says nothing is not quantised. Raises UnsupportedFormatError.
    """
    if (folder / W4_FILE).exists():
        dg_w4a16.check(folder)
        return dg_w4a16.read_module
    own_file = folder / MODELOPT_FILE
    if quantization is None and own_file.exists():
        quantization = {
            **json.loads(own_file.read_text())["quantization"],
            "quant_method": "modelopt",
        }
    if quantization is None:
        return read_dense
    match quantization.get("quant_method"):
        case "compressed-tensors":
            compressed_tensors.check(quantization)
            return compressed_tensors.read_module
        case "modelopt":
            modelopt.check(quantization)
            return modelopt.read_module
        case other:
            raise UnsupportedFormatError(
                f"quantization_config.quant_method is {other!r}; supported: 'compressed-tensors' "
                "or 'modelopt'"
            )


class PublishedWeights:
    """A checkpoint's weights by their names in the unquantised one."""

    def __init__(self, files: TensorFiles, read_module: ReadModule, experts: int) -> None:
        self._files = files
        self._read_module = read_module
        self._experts = experts

    def read(self, name: str) -> Weight:
        """As it is stored. Raises MissingTensorError, or UnquantizableError naming the weight."""
        try:
            return self._read(name)
        except UnquantizableError as error:
            raise UnquantizableError(f"{name}: {error}") from error

    def _read(self, name: str) -> Weight:
        module, _, last = name.rpartition(".")
        if last == "weight":
            return self._read_module(self._files, module)
        if last in _PROJECTIONS and self._read_module is dg_w4a16.read_module:
            return dg_w4a16.read_experts(self._files, module, last)
        if last in _PROJECTIONS and name not in self._files and self._has_experts(module):
            return stack([self._expert_modules(module, each) for each in _PROJECTIONS[last]])
        return self._files.take(name)

    def pass_over(self, is_idle: Callable[[str], bool]) -> None:
        """Count as read what nobody needs."""
        self._files.pass_over(lambda name: is_idle(name) or name.endswith(_ACTIVATIONS))

    @property
    def left(self) -> list[str]:
        """Tensors that nobody has asked for."""
        return self._files.left

    def _has_experts(self, module: str) -> bool:
        return any(f"{module}.0.down_proj.{kind}" in self._files for kind in _STORED)

    def _expert_modules(self, module: str, projection: str) -> Tensor | QuantizedWeight:
        return stack_experts(
            [
                self._read_module(self._files, f"{module}.{expert}.{projection}")
                for expert in range(self._experts)
            ]
        )


def read_dense(files: TensorFiles, module: str) -> Tensor:
    """A module of a checkpoint that is not quantised."""
    return files.take(f"{module}.weight")
