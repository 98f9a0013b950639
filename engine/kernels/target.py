"""The GPU that a kernel is launched on, as far as its tiles and its form depend on it."""

import torch

Capability = tuple[int, int]  # NVIDIA's compute capability, such as (9, 0)


def capability_of(device: torch.device) -> Capability | None:
    """Returns the compute capability of an NVIDIA GPU, or None for any other device."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    return torch.cuda.get_device_capability(device)
