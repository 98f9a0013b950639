"""Which device profile is taken, and what becomes of a configuration with it.

What was told by option or variable goes before the profile, and the profile before the defaults.
Plain Python: whoever knows the GPU, says its name and memory; in a server that is the worker.
"""

from typing import Any

from engine.config import DEMO_MODEL, DeviceProfile, EngineConfig, Hardware, profile_names
from engine.sizing.gpu import Gpu

NO_PROFILE = "none"
_LEAST_SHARE = 0.9  # of a profile's memory: drivers report somewhat less than makers
# Of the memory of a GPU that no profile is made for: the rest is the driver's.
_UNKNOWN_SHARE = 0.95


def choose_profile(config: EngineConfig, gpu: Gpu | None) -> str:
    """The profile's name, or 'none'.

    By itself: the demo model has its own on every device. Else the one made for the GPU's name, if
    the GPU has its memory (a laptop's has less); else the one for as much memory, the GPU's own
    and none that it shares. Without a GPU there is none.
    """
    if config.profile != "auto":
        return config.profile
    if config.model == DEMO_MODEL:
        return DEMO_MODEL
    return NO_PROFILE if gpu is None else profile_for(gpu)


def profile_for(gpu: Gpu) -> str:
    """The name of the device profile that suits the GPU best, or 'none'."""
    named, sized = [], []
    for name in profile_names():
        hardware = DeviceProfile.read(name).hardware
        if hardware is None or gpu.memory_bytes < _LEAST_SHARE * hardware.memory_gib * 2**30:
            continue
        if hardware.is_of(gpu.name):
            named.append((hardware.memory_gib, name))
        elif not hardware.shared_memory:
            sized.append((hardware.memory_gib, name))
    return max(named or sized, default=(0.0, NO_PROFILE))[1]


def hardware_of(gpu: Gpu) -> Hardware | None:
    """Its maker's figures, where a profile is made for it."""
    name = profile_for(gpu)
    found = None if name == NO_PROFILE else DeviceProfile.read(name).hardware
    return found if found is not None and found.is_of(gpu.name) else None


def usable_bytes(gpu: Gpu) -> int:
    """Of its memory, what others leave: the driver, a desktop, the system."""
    hardware = hardware_of(gpu)
    if hardware is None:
        return round(_UNKNOWN_SHARE * gpu.memory_bytes)
    return gpu.memory_bytes - round(hardware.reserve_gib * 2**30)


def apply_profile(config: EngineConfig, name: str, *, quantized: bool) -> EngineConfig:
    """The configuration with the profile's values where nothing was told.

    A checkpoint that is `quantized` stays as it is, whatever format a profile has for others.
    """
    told = config.model_dump(exclude_unset=True)
    return EngineConfig(**{**_settings(name, quantized=quantized), **told})


def describe_profile(config: EngineConfig, name: str, *, quantized: bool) -> str:
    """For people: the profile, its values, and which of them were told otherwise in `config`."""
    if name == NO_PROFILE:
        return NO_PROFILE
    settings = _settings(name, quantized=quantized)
    told = [key for key in settings if key in config.model_fields_set]
    values = [f"{key} {value}".lower() for key, value in settings.items() if key not in told]
    otherwise = f" (told otherwise: {', '.join(told)})" if told else ""
    return f"{name}: {', '.join(values) or 'nothing'}{otherwise}"


def _settings(name: str, *, quantized: bool) -> dict[str, Any]:
    if name == NO_PROFILE:
        return {}
    formats = {"quantize_experts", "quantize_linears"} if quantized else set()
    return DeviceProfile.read(name).settings.model_dump(exclude=formats)
