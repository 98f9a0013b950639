"""Which device and which dtype the model gets, and what the device is called."""

import logging
from pathlib import Path

import torch

from engine.config import EngineConfig

logger = logging.getLogger(__name__)

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


def device_name(device: torch.device) -> str:
    """A name for people: the GPU's own, or 'cpu' with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'' if threads == 1 else 's'})"
