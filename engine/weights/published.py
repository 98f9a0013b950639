"""Recognises a checkpoint's published format and reads the engine's weights from it.

A format is a function that returns the weight [N, K] of a named module as it is stored. The
unquantised checkpoint stores a layer's experts as one module. The quantised ones, except for
GoedelMachines', store each projection of each expert as a module of its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.sizing.dimensions import MODELOPT_FILE, W4_FILE
from engine.sizing.model_files import one_line, read_json
from engine.weights import compressed_tensors, dg_w4a16, modelopt
from engine.weights.errors import UnreadableWeightsError, UnsupportedFormatError
from engine.weights.quantization import (
    QuantizedWeight,
    UnquantizableError,
    Weight,
    stack,
    stack_experts,
)
from engine.weights.tensor_files import TensorFiles

ReadModule = Callable[[TensorFiles, str], Tensor | QuantizedWeight]

# Scales for activations and caches. Both keep their type here, so the scales are not needed.
_ACTIVATIONS = (".input_scale", ".input_global_scale", ".k_scale", ".v_scale", ".output_scale")
_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_STORED = ("weight", "weight_packed")  # the names that a module's weight may have


def find_format(folder: Path, quantization: dict[str, Any] | None) -> ReadModule:
    """Returns the function that reads this checkpoint's modules.

    The format is named by `w4_meta.json` (GoedelMachines), by config.json's `quantization_config`
    (passed as `quantization`) or by ModelOpt's own file. A checkpoint without any of them is not
    quantised. Raises UnsupportedFormatError if the format cannot be read, and ModelFilesError if
    the file that names it is damaged.
    """
    if (folder / W4_FILE).exists():
        dg_w4a16.check(folder)
        return dg_w4a16.read_module
    own_file = folder / MODELOPT_FILE
    if quantization is None and own_file.exists():
        named = read_json(own_file).get("quantization")
        if not isinstance(named, dict):
            raise UnsupportedFormatError(
                f"{MODELOPT_FILE}: quantization is {named!r}; it must be an object"
            )
        quantization = {**named, "quant_method": "modelopt"}
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
    """A checkpoint's weights, by their names in the unquantised checkpoint."""

    def __init__(self, files: TensorFiles, read_module: ReadModule, experts: int) -> None:
        self._files = files
        self._read_module = read_module
        self._experts = experts

    def read(self, name: str) -> Weight:
        """Returns a weight as it is stored.

        Raises MissingTensorError if one of its tensors is in no file, UnreadableWeightsError if a
        copy of one differs from it, and UnquantizableError, which names the weight, if its tensors
        do not fit each other.
        """
        try:
            return self._read(name)
        except UnreadableWeightsError:
            raise
        except (UnquantizableError, RuntimeError, TypeError, ValueError) as error:
            # The last three are torch's and Python's, for tensors of impossible shapes.
            raise UnquantizableError(f"{name}: {one_line(error)}") from error

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
        """Count as read what is not needed: activations' scales and names `is_idle` accepts."""
        self._files.pass_over(lambda name: is_idle(name) or name.endswith(_ACTIVATIONS))

    @property
    def left(self) -> list[str]:
        """The names of the tensors that have not been read."""
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
    """Returns the weight of a module in an unquantised checkpoint.

    Raises MissingTensorError if it is in no file.
    """
    return files.take(f"{module}.weight")
