"""GoedelMachines' w4a16 checkpoint: 4-bit experts in separate files, all other weights unquantised.

`w4_meta.json` names the format. Beside the model's files there is one `experts_*.safetensors` for
each layer, with `gu_q`, `gu_s`, `gu_z` for gate and up and `dn_q`, `dn_s`, `dn_z` for down. `q`
holds two codes per byte, the first in the low half. `s` and `z` hold a float16 scale and the code
that stands for zero, one of each for every group of inputs.

Source: kernels/w4a16.py, pack_experts.py and load_w4_checkpoint.py of the checkpoint, as
published in SRSWTI/knivesysl-diffusion-xe (commit 3719a13).
"""

from pathlib import Path

from torch import Tensor

from engine.sizing.dimensions import W4_FILE
from engine.sizing.model_files import read_json
from engine.weights.errors import UnsupportedFormatError
from engine.weights.quantization import QuantizedWeight, repack
from engine.weights.tensor_files import TensorFiles

_FORMAT = "dg-w4a16-v1"
_SHORT = {"gate_up_proj": "gu", "down_proj": "dn"}


def check(folder: Path) -> None:
    """Raises UnsupportedFormatError if `w4_meta.json` names another format.

    Raises ModelFilesError if that file can't be read.
    """
    named = read_json(folder / W4_FILE).get("format")
    if named != _FORMAT:
        raise UnsupportedFormatError(f"{W4_FILE}'s format is {named!r}; supported: {_FORMAT!r}")


def read_module(files: TensorFiles, module: str) -> Tensor:
    """Returns a module's unquantised weight [N, K].

    Raises MissingTensorError if it is in no file.
    """
    return files.take(f"{module}.weight")


def read_experts(files: TensorFiles, module: str, projection: str) -> QuantizedWeight:
    """Returns a layer's experts [E, N, K], quantised to four bits.

    Raises MissingTensorError if one of their tensors is in no file.
    """
    short = f"{module}.{_SHORT[projection]}"
    codes, scales, zeros = (files.take(f"{short}_{kind}") for kind in "qsz")
    return QuantizedWeight("int4", repack(codes), scales, zeros * scales)  # both are float16
