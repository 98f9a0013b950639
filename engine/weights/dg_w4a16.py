"""GoedelMachines' w4a16 checkpoint: experts of four bits in files of their own, the rest as it was.

`w4_meta.json` names the format. Beside the model's files there is `experts_*.safetensors` for each
layer, with `gu_q`, `gu_s`, `gu_z` for gate and up and `dn_q`, `dn_s`, `dn_z` for down: two codes a
byte, the first low, and for each group of inputs a float16 scale and the code that stands for zero.
Source: the checkpoint's own kernels/w4a16.py, pack_experts.py and load_w4_checkpoint.py, as
SRSWTI/knivesysl-diffusion-xe has them (commit 3719a13).
"""

import json
from pathlib import Path

from torch import Tensor

from engine.sizing.dimensions import W4_FILE
from engine.weights.errors import UnsupportedFormatError
from engine.weights.quantization import QuantizedWeight
from engine.weights.tensor_files import TensorFiles

_FORMAT = "dg-w4a16-v1"
_SHORT = {"gate_up_proj": "gu", "down_proj": "dn"}


def check(folder: Path) -> None:
    """Raises UnsupportedFormatError if it is another format."""
    found = json.loads((folder / W4_FILE).read_text()).get("format")
    if found != _FORMAT:
        raise UnsupportedFormatError(f"{W4_FILE}'s format is {found!r}; supported: {_FORMAT!r}")


def expert_files(folder: Path) -> list[Path]:
    """Those that the index does not name; none in another checkpoint."""
    return sorted(folder.glob("experts_*.safetensors")) if (folder / W4_FILE).exists() else []


def read_module(files: TensorFiles, module: str) -> Tensor:
    """A module's weight [N, K], which is not quantised. Raises MissingTensorError."""
    return files.take(f"{module}.weight")


def read_experts(files: TensorFiles, module: str, projection: str) -> QuantizedWeight:
    """A layer's experts [E, N, K]. Raises MissingTensorError."""
    short = f"{module}.{_SHORT[projection]}"
    codes, scales, zeros = (files.take(f"{short}_{kind}") for kind in "qsz")
    return QuantizedWeight("int4", codes, scales, zeros * scales)  # of float16 both
