"""The GPU that a kernel is launched on, as far as its tiles and its form depend on it."""

import functools
from typing import NamedTuple

import torch
from triton.runtime import driver


class Target(NamedTuple):
    """An NVIDIA GPU's compute capability and sizes."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int  # the most shared memory that a program can have


def target_of(device: torch.device) -> Target | None:
    """Returns the GPU of this device, or None for a device that is not an NVIDIA GPU."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    return _target(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _target(index: int) -> Target:
    properties = driver.active.utils.get_device_properties(index)
    return Target(
        torch.cuda.get_device_capability(index),
        properties["multiprocessor_count"],
        properties["max_shared_mem"],
    )
