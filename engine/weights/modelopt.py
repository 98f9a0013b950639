"""NVFP4 checkpoints by NVIDIA's ModelOpt.

A quantised module has `weight` (two e2m1 codes per byte, the first in the low half),
`weight_scale` (float8_e4m3fn, one for 16 inputs) and `weight_scale_2` (float32, multiplied in).
A module without `weight_scale_2` is not quantised. NVIDIA's checkpoint of DiffusionGemma quantises
the experts only, and each projection of each expert is a module of its own. `input_scale` is for
activations, which keep their type here.
"""

from typing import Any

from torch import Tensor

from engine.weights.errors import UnsupportedFormatError
from engine.weights.quantization import QuantizedWeight, repack
from engine.weights.tensor_files import TensorFiles

_ALGORITHMS = ("NVFP4", "W4A16_NVFP4")


def check(config: dict[str, Any]) -> None:
    """Raises UnsupportedFormatError if the algorithm is not supported.

    `config` is `quantization_config` of config.json, or `quantization` of hf_quant_config.json.
    """
    algorithm = config.get("quant_algo")
    if algorithm not in _ALGORITHMS:
        raise UnsupportedFormatError(
            f"ModelOpt's quant_algo is {algorithm!r}; supported: "
            + " or ".join(map(repr, _ALGORITHMS))
        )


def read_module(files: TensorFiles, module: str) -> Tensor | QuantizedWeight:
    """Returns a module's weight [N, K] as it is stored.

    Raises MissingTensorError if one of its tensors is in no file.
    """
    weight = files.take(f"{module}.weight")
    if f"{module}.weight_scale_2" not in files:
        return weight
    global_scale = files.take(f"{module}.weight_scale_2").float().reshape(())
    return QuantizedWeight(
        "nvfp4", repack(weight), files.take(f"{module}.weight_scale"), None, global_scale
    )
