"""NVFP4 checkpoints by NVIDIA's ModelOpt.

A quantised module has `weight` (two e2m1 codes a byte, the first low), `weight_scale`
(float8_e4m3fn, one for 16) and `weight_scale_2` (float32, multiplied in); a module without the
last is not quantised. As NVIDIA publishes DiffusionGemma only experts are: one module each and a
projection. `input_scale` is activations', which keep their type here.
"""

from typing import Any

from torch import Tensor

from engine.weights.errors import UnsupportedFormatError
from engine.weights.quantization import QuantizedWeight
from engine.weights.tensor_files import TensorFiles

_ALGORITHMS = ("NVFP4", "W4A16_NVFP4")


def check(config: dict[str, Any]) -> None:
    """`quantization_config`, or `quantization` of hf_quant_config.json.

    Raises UnsupportedFormatError.
    """
    algorithm = config.get("quant_algo")
    if algorithm not in _ALGORITHMS:
        raise UnsupportedFormatError(
            f"ModelOpt's quant_algo is {algorithm!r}; supported: "
            + " or ".join(map(repr, _ALGORITHMS))
        )


def read_module(files: TensorFiles, module: str) -> Tensor | QuantizedWeight:
    """A module's weight [N, K] as it is stored. Raises MissingTensorError."""
    weight = files.take(f"{module}.weight")
    if f"{module}.weight_scale_2" not in files:
        return weight
    global_scale = files.take(f"{module}.weight_scale_2").float().reshape(())
    return QuantizedWeight(
        "nvfp4", weight, files.take(f"{module}.weight_scale"), None, global_scale
    )
