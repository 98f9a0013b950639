"""Which GPU there is, as NVIDIA's driver tells it. Plain Python, without torch.

The driver is asked, not nvidia-smi: nvidia-smi has no number for the memory of a GPU that shares
the system's. The driver obeys CUDA_VISIBLE_DEVICES, so its first GPU is the one that torch takes.
"""

import ctypes
import logging
from typing import NamedTuple

logger = logging.getLogger(__name__)

_NAME_BYTES = 256  # the longest name that is asked for


class Gpu(NamedTuple):
    """A GPU as its driver knows it."""

    name: str
    memory_bytes: int


def first_gpu() -> Gpu | None:
    """Returns the driver's first GPU, or None if there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, total = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    code = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    )
    if code:
        logger.warning("NVIDIA's driver finds no GPU (CUDA error %d).", code)
        return None
    return Gpu(name.value.decode(), total.value)
