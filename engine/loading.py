"""Turn a configuration into a model that is ready to denoise: plan, find and load it.

A worker does this before its loop begins. Tests, benchmarks and the demo model's evaluation need no
loop and call these functions directly.
"""

import dataclasses
import logging
from collections.abc import Callable

import torch

from engine.config import EngineConfig
from engine.denoise.denoiser import Denoiser
from engine.denoise.sampler import SamplerConfig
from engine.device import (
    choose_device,
    choose_dtype,
    choose_threads,
    device_name,
    find_gpu,
    free_memory,
    taken_memory,
)
from engine.messages import Loading
from engine.model.checkpoint import (
    download_weights,
    find_checkpoint,
    find_dimensions,
    load_model,
)
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.kernel_choice import (
    choose_attention_kernel,
    choose_layer_kernel,
    choose_product_kernels,
)
from engine.model.vision import Vision
from engine.sizing.dimensions import Dimensions
from engine.sizing.memory import total_ram_bytes
from engine.sizing.plan import DoesNotFitError, check_fit, gb
from engine.sizing.profiles import apply_profile, choose_profile, describe_profile
from engine.weights.quantized_cache import cache_root

logger = logging.getLogger(__name__)

_PROGRESS_PARTS = 200  # the most `Loading` messages that are sent


def with_profile(config: EngineConfig) -> tuple[EngineConfig, str]:
    """Returns the configuration with its device profile applied, and a description of the profile.

    The profile only sets options that are not set explicitly. Raises DeviceError, CheckpointError
    or UnsupportedModelError.
    """
    profile = choose_profile(config, find_gpu(choose_device(config)))
    quantized = find_dimensions(config.model_path, config.gguf, config.revision).quantized
    described = describe_profile(config, profile, quantized=quantized)
    return apply_profile(config, profile, quantized=quantized), described


def build_denoiser(
    config: EngineConfig, send: Callable[[Loading], None] = lambda _message: None
) -> Denoiser:
    """Load the configured model. `send` gets messages about how much is loaded.

    Raises CheckpointError, DeviceError, UnsupportedModelError, UnsupportedSamplerError or
    DoesNotFitError. DoesNotFitError is raised before anything is allocated, and before any weights
    are downloaded if their size is known by then. The size of a quantised model is known only from
    its files (for GGUF from the header). If the hub can't be asked for their sizes, the plan is
    checked once the files are available.
    """
    device = choose_device(config)
    dtype = choose_dtype(config, device)
    dimensions = find_dimensions(config.model_path, config.gguf, config.revision)
    if dimensions.sized:
        check_plan(dimensions, config, free_memory(device), device)
    checkpoint = find_checkpoint(config.model_path, config.gguf, config.revision)
    sampler = SamplerConfig.from_generation_config(checkpoint.generation)
    download_weights(checkpoint)
    if not dimensions.sized:
        dimensions = find_dimensions(str(checkpoint.folder), str(checkpoint.gguf or ""))
        check_plan(dimensions, config, free_memory(device), device)
    torch.set_num_threads(choose_threads(config, device, checkpoint.config.dimensions.hidden_size))
    vision = None
    if checkpoint.vision is not None:
        vision = Vision(
            checkpoint.vision,
            device=device,
            dtype=dtype,
            quantized=config.formats.rest != "none",
        )
    model = load_model(
        checkpoint,
        device=device,
        dtype=dtype,
        formats=config.formats,
        cache_root=cache_root() if config.quantized_cache else None,
        cache_bytes=config.quantized_cache_gb * 1e9,
        vision=vision,
        on_progress=_throttled(send),
    )
    sampler = dataclasses.replace(sampler, quality=config.quality, early_end=config.early_end)
    return new_denoiser(model, sampler, config, vision)


def new_denoiser(
    model: DiffusionGemma,
    sampler: SamplerConfig,
    config: EngineConfig,
    vision: Vision | None = None,
) -> Denoiser:
    """Returns a denoiser for a model that has its weights, configured by `config`.

    This also chooses the kernels of `model` and `vision`. Raises DeviceError if no kernel for the
    experts runs on the model's device.
    """
    device, dtype = model.device, model.dtype
    never_waits = choose_product_kernels(model, dtype)
    if vision is not None:
        choose_product_kernels(vision, dtype)
    model.attention_kernel = choose_attention_kernel(
        model.dimensions.layers, model.dimensions.query_heads, device, dtype
    )
    choose_layer_kernel(model)
    denoiser = Denoiser(
        model,
        sampler,
        context_length=min(config.max_context, model.dimensions.max_positions),
        prefill_chunk=config.prefill_chunk,
        max_active=config.max_active,
        prefix_cache_bytes=config.prefix_cache_mib * 2**20,
        vision=vision,
        cuda_graphs=use_cuda_graphs(config, device, never_waits=never_waits),
        speculate=config.speculate,
    )
    denoiser.prepare()
    if device.type == "cuda":
        logger.info("%s of the device's memory are in use", gb(taken_memory(device)))
    return denoiser


def check_plan(
    dimensions: Dimensions, config: EngineConfig, free_bytes: int, device: torch.device
) -> None:
    """Log the plan if it fits.

    Raises DoesNotFitError if it does not fit a GPU. On a CPU this is only logged as a warning,
    because the system can free memory. It is raised if the whole memory would not be enough.
    """
    cuda = device.type == "cuda"
    try:
        plan = check_fit(dimensions, config, free_bytes, cuda=cuda, device=device_name(device))
    except DoesNotFitError as error:
        if cuda:
            raise
        whole = "this machine (memory and swap)"
        check_fit(dimensions, config, total_ram_bytes(), cuda=False, device=whole)
        logger.warning("%s", error)
    else:
        logger.info("planned: %s", plan)


def use_cuda_graphs(config: EngineConfig, device: torch.device, *, never_waits: bool) -> bool:
    """Returns whether passes are captured as CUDA graphs.

    A capture fails where the host waits for the device within a pass. So no capture is tried unless
    `never_waits`.
    """
    if config.cuda_graphs != "auto" or device.type != "cuda":
        return False
    if not never_waits:
        logger.warning("passes run without CUDA graphs: the experts' product waits for the host")
    return never_waits


def _throttled(send: Callable[[Loading], None]) -> Callable[[int, int], None]:
    """Returns a progress callback that sends `Loading` messages, but not for every small tensor."""
    reported = 0

    def on_progress(loaded: int, total: int) -> None:
        nonlocal reported
        if loaded - reported >= total / _PROGRESS_PARTS:
            reported = loaded
            send(Loading(loaded, total))

    return on_progress
