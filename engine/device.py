"""Which device and dtype the model gets; the device's name and memory, and when it is full."""

import logging
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.sizing.gpu import Gpu, first_gpu
from engine.sizing.memory import available_ram_bytes

logger = logging.getLogger(__name__)

_SHARED_FROM = 512  # hidden size from which CPU threads are worth their waiting
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class DeviceError(RuntimeError):
    """The configured device is not there."""


def choose_device(config: EngineConfig) -> torch.device:
    """The configured device; raises DeviceError if torch can't use it."""
    if torch.cuda.is_available():
        return torch.device("cpu" if config.device == "cpu" else "cuda")
    why = (
        f"torch {torch.__version__} is built without CUDA"
        if torch.version.cuda is None
        else "torch sees no GPU"
    )
    if config.device == "cuda":
        raise DeviceError(f"device is 'cuda', but {why}")
    if config.device == "auto" and _NVIDIA_DRIVER.exists():
        logger.warning("There is an NVIDIA driver here, but %s: running on the CPU.", why)
    return torch.device("cpu")


def choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """float32 on a CPU, where bfloat16 is slow; bfloat16, the released weights' type, on a GPU."""
    if config.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def choose_threads(config: EngineConfig, device: torch.device, hidden_size: int) -> int:
    """CPU threads for torch; a narrow model on a CPU gets one.

    Its operations are too small to share: on two idle cores the demo model's step takes 4.6 ms
    with one thread and 4.2 ms with two that spin while they wait, 13 ms with two that sleep; a
    step of width 1024 460 ms, 273 ms and 299 ms.
    """
    if config.threads:
        return config.threads
    narrow = device.type == "cpu" and hidden_size < _SHARED_FROM
    return 1 if narrow else torch.get_num_threads()


def out_of_memory(error: Exception) -> bool:
    """Whether this is a device, of either kind, that has no memory left.

    torch has a class for GPUs alone: its CPU allocator raises a bare RuntimeError.
    """
    match error:
        case torch.OutOfMemoryError() | MemoryError():
            return True
        case RuntimeError():
            return "DefaultCPUAllocator: " in str(error)
    return False


def device_name(device: torch.device) -> str:
    """A name for people: the GPU's own, or 'cpu' with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'' if threads == 1 else 's'})"


def find_gpu(device: torch.device) -> Gpu | None:
    """Returns the device as profiles know it, or None for a CPU."""
    return None if device.type == "cpu" else first_gpu()


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated.

    A GPU without memory of its own counts files that the system keeps in memory as taken, though
    they go when somebody needs it.
    """
    if device.type == "cpu":
        return available_ram_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    shared = bool(torch.cuda.get_device_properties(device).is_integrated)
    return max(free, available_ram_bytes()) if shared else free
