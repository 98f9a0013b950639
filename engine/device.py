"""Choose the model's device, dtype and CPU threads, and query the device's name and memory."""

import logging
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.sizing.gpu import Gpu, first_gpu
from engine.sizing.memory import available_ram_bytes, resident_bytes

logger = logging.getLogger(__name__)

_SHARED_FROM = 512  # from this hidden size on, several CPU threads are faster than one
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class DeviceError(RuntimeError):
    """The configured device cannot be used."""


def choose_device(config: EngineConfig) -> torch.device:
    """Returns the device that the configuration selects.

    Raises DeviceError if torch cannot use it.
    """
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
        logger.warning("An NVIDIA driver is installed, but %s: running on the CPU.", why)
    return torch.device("cpu")


def choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """Returns the configured dtype.

    auto is float32 on a CPU, where bfloat16 is slow, and bfloat16 on a GPU, because the released
    weights have that type.
    """
    if config.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def choose_threads(config: EngineConfig, device: torch.device, hidden_size: int) -> int:
    """Returns the number of CPU threads for torch. A narrow model on a CPU gets one by default.

    The operations of a narrow model are too small to share. Step times on two idle cores, with one
    thread, with two that spin while they wait, and with two that sleep: 4.6 ms, 4.2 ms and 13 ms
    for the demo model; 460 ms, 273 ms and 299 ms for a model of width 1024.
    """
    if config.threads:
        return config.threads
    narrow = device.type == "cpu" and hidden_size < _SHARED_FROM
    return 1 if narrow else torch.get_num_threads()


def out_of_memory(error: Exception) -> bool:
    """Returns whether the error says that the GPU or the CPU has no memory left.

    torch has an error class for GPUs only. Its CPU allocator raises a plain RuntimeError.
    """
    match error:
        case torch.OutOfMemoryError() | MemoryError():
            return True
        case RuntimeError():
            return "DefaultCPUAllocator: " in str(error)
    return False


def device_name(device: torch.device) -> str:
    """Returns a name for people: the GPU's name, or 'cpu' with torch's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'' if threads == 1 else 's'})"


def find_gpu(device: torch.device) -> Gpu | None:
    """Returns the GPU by which a device profile is chosen, or None for a CPU."""
    return None if device.type == "cpu" else first_gpu()


def taken_memory(device: torch.device) -> int:
    """Returns the bytes of a GPU's memory that are in use, as its driver reports them.

    Besides torch's tensors these are what its allocator keeps, graphs, libraries and the context,
    and what other programs use.
    """
    taken, _ = gpu_memory(device)
    return taken


def gpu_memory(device: torch.device) -> tuple[int, int]:
    """Returns how many bytes of a GPU's memory are in use, and how many it has: 0 for a CPU."""
    if device.type == "cpu":
        return 0, 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def used_memory(device: torch.device) -> int:
    """Returns the bytes that are in use: of a GPU's memory, or on a CPU by this process."""
    return resident_bytes() if device.type == "cpu" else taken_memory(device)


def free_memory(device: torch.device) -> int:
    """Returns the bytes that can still be allocated.

    A GPU that shares the system's memory counts the system's file cache as used, although the
    system frees that when memory is needed.
    """
    if device.type == "cpu":
        return available_ram_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    shared = bool(torch.cuda.get_device_properties(device).is_integrated)
    return max(free, available_ram_bytes()) if shared else free
