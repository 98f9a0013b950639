"""Ask NVIDIA's driver for the machine's first GPU. Plain Python, without torch.

nvidia-smi is not used, because it reports no memory size for a GPU that shares the system's memory.
The driver respects CUDA_VISIBLE_DEVICES, so its first GPU is also the GPU that torch uses.
"""

import ctypes
import logging
from typing import NamedTuple

logger = logging.getLogger(__name__)

_NAME_BYTES = 256  # a longer name is cut


class Gpu(NamedTuple):
    """A GPU's name and memory, as its driver reports them."""

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
        logger.warning("NVIDIA's driver reports no usable GPU (CUDA error %d).", code)
        return None
    return Gpu(name.value.decode(), total.value)
