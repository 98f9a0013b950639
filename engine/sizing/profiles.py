"""Choose a device profile and apply it to a configuration.

Options that are set explicitly, on the command line or in the environment, override the profile.
The profile overrides the defaults. Plain Python: callers pass the GPU's name and memory. In a
server the worker does this.
"""

from typing import Any

from engine.config import DEMO_MODEL, DeviceProfile, EngineConfig, Hardware, profile_names
from engine.sizing.gpu import Gpu

NO_PROFILE = "none"
# A GPU needs this share of a profile's memory: drivers report a little less than makers do.
_LEAST_SHARE = 0.9
# The usable share of a GPU's memory if no profile is made for it. The driver uses the remainder.
_UNKNOWN_SHARE = 0.95


def choose_profile(config: EngineConfig, gpu: Gpu | None) -> str:
    """Returns the name of the profile to use, or 'none'.

    This is the configured profile, unless that is 'auto'. 'auto' means the demo model's own profile
    for the demo model, 'none' without a GPU, and otherwise `profile_for` the GPU.
    """
    if config.profile != "auto":
        return config.profile
    if config.model == DEMO_MODEL:
        return DEMO_MODEL
    return NO_PROFILE if gpu is None else profile_for(gpu)


def profile_for(gpu: Gpu) -> str:
    """Returns the name of the device profile that suits the GPU best, or 'none'.

    This is a profile made for the GPU's name, if the GPU has the profile's memory (a laptop's GPU
    has less). Otherwise it is the profile for the most memory that the GPU has. Profiles of devices
    that share the system's memory are only chosen by name.
    """
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
    """Returns the maker's figures for the GPU, or None if no profile is made for it."""
    name = profile_for(gpu)
    hardware = None if name == NO_PROFILE else DeviceProfile.read(name).hardware
    return hardware if hardware is not None and hardware.is_of(gpu.name) else None


def usable_bytes(gpu: Gpu) -> int:
    """Returns the part of the GPU's memory that the driver, a desktop and the system leave free."""
    hardware = hardware_of(gpu)
    if hardware is None:
        return round(_UNKNOWN_SHARE * gpu.memory_bytes)
    return gpu.memory_bytes - round(hardware.reserve_gib * 2**30)


def apply_profile(config: EngineConfig, name: str, *, quantized: bool) -> EngineConfig:
    """Returns the configuration with the profile's values for all options not set explicitly.

    The profile's formats are ignored for a checkpoint that is already `quantized`.
    """
    explicit = config.model_dump(exclude_unset=True)
    return EngineConfig(**{**_settings(name, quantized=quantized), **explicit})


def describe_profile(config: EngineConfig, name: str, *, quantized: bool) -> str:
    """Returns a description of the profile for people.

    It has the profile's name, its values, and the options that `config` sets explicitly instead.
    """
    if name == NO_PROFILE:
        return NO_PROFILE
    settings = _settings(name, quantized=quantized)
    explicit = [key for key in settings if key in config.model_fields_set]
    values = [f"{key} {value}".lower() for key, value in settings.items() if key not in explicit]
    overridden = f" (set explicitly: {', '.join(explicit)})" if explicit else ""
    return f"{name}: {', '.join(values) or 'nothing'}{overridden}"


def _settings(name: str, *, quantized: bool) -> dict[str, Any]:
    if name == NO_PROFILE:
        return {}
    formats = {"quantize_experts", "quantize_linears"} if quantized else set()
    return DeviceProfile.read(name).settings.model_dump(exclude=formats)
