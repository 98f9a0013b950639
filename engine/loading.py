"""From a configuration to a model that is ready to denoise: planned, found, loaded.

What a worker does before its loop begins. Tests, benchmarks and the demo model's evaluation, which
need no loop, begin here too.
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
)
from engine.messages import Loading
from engine.model.checkpoint import (
    download_weights,
    find_checkpoint,
    find_dimensions,
    load_model,
)
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.kernel_choice import choose_attention_kernel, choose_product_kernels
from engine.model.vision import Vision
from engine.sizing.dimensions import Dimensions
from engine.sizing.plan import DoesNotFitError, check_fit
from engine.sizing.profiles import apply_profile, choose_profile, describe_profile
from engine.weights.quantized_cache import cache_root

logger = logging.getLogger(__name__)

_PROGRESS_PARTS = 200  # `Loading` messages at most


def with_profile(config: EngineConfig) -> tuple[EngineConfig, str]:
    """The same with what the device's profile says of all that is not told, and a line about it."""
    profile = choose_profile(config, find_gpu(choose_device(config)))
    quantized = find_dimensions(config.model_path, config.gguf).quantized
    described = describe_profile(config, profile, quantized=quantized)
    return apply_profile(config, profile, quantized=quantized), described


def build_denoiser(
    config: EngineConfig, send: Callable[[Loading], None] = lambda _message: None
) -> Denoiser:
    """Load the configured model, telling `send` how far it is.

    Raises CheckpointError, DeviceError, UnsupportedModelError or UnsupportedSamplerError, and
    DoesNotFitError before anything is allocated; and before anything is downloaded, unless it is
    quantised: then only its files say how large it is, of GGUF the header.
    """
    device = choose_device(config)
    dtype = choose_dtype(config, device)
    dimensions = find_dimensions(config.model_path, config.gguf)
    if dimensions.sized:
        check_plan(dimensions, config, free_memory(device), device)
    checkpoint = find_checkpoint(config.model_path, config.gguf)
    if not dimensions.sized:
        dimensions = find_dimensions(str(checkpoint.folder), str(checkpoint.gguf or ""))
        check_plan(dimensions, config, free_memory(device), device)
    sampler = SamplerConfig.from_generation_config(checkpoint.generation)
    download_weights(checkpoint)
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
        vision=vision,
        on_progress=_rationed(send),
    )
    sampler = dataclasses.replace(sampler, early_end=config.early_end)
    return new_denoiser(model, sampler, config, vision)


def new_denoiser(
    model: DiffusionGemma,
    sampler: SamplerConfig,
    config: EngineConfig,
    vision: Vision | None = None,
) -> Denoiser:
    """For a model that has its weights, with what the configuration says of running it.

    Raises DeviceError if no kernel for the experts runs on their device.
    """
    device, dtype = model.device, model.dtype
    never_waits = choose_product_kernels(model, dtype)
    if vision is not None:
        choose_product_kernels(vision, dtype)
    model.attention_kernel = choose_attention_kernel(
        model.dimensions.layers, model.dimensions.query_heads, device, dtype
    )
    return Denoiser(
        model,
        sampler,
        context_length=min(config.max_context, model.dimensions.max_positions),
        prefill_chunk=config.prefill_chunk,
        max_active=config.max_active,
        prefix_cache_bytes=config.prefix_cache_mib * 2**20,
        vision=vision,
        cuda_graphs=use_cuda_graphs(config, device, never_waits=never_waits),
        compiled=config.compile,
    )


def check_plan(
    dimensions: Dimensions, config: EngineConfig, free_bytes: int, device: torch.device
) -> None:
    """Raises DoesNotFitError on a GPU; on a CPU, whose system can make room, it is only logged."""
    cuda = device.type == "cuda"
    try:
        plan = check_fit(dimensions, config, free_bytes, cuda=cuda, device=device_name(device))
    except DoesNotFitError as error:
        if cuda:
            raise
        logger.warning("%s", error)
    else:
        logger.info("planned: %s", plan)


def use_cuda_graphs(config: EngineConfig, device: torch.device, *, never_waits: bool) -> bool:
    """Whether passes are to be captured: not where the host waits for the device within them, for
    there a capture fails, and `Graphs` gives up compiled passes with it.
    """
    if config.cuda_graphs != "auto" or device.type != "cuda":
        return False
    if not never_waits:
        logger.warning("no CUDA graphs but dynamic passes: the experts' product waits for the host")
    return never_waits


def _rationed(send: Callable[[Loading], None]) -> Callable[[int, int], None]:
    """Bytes loaded as `Loading` messages, but not one for each small tensor."""
    told = 0

    def on_progress(loaded: int, total: int) -> None:
        nonlocal told
        if loaded - told >= total / _PROGRESS_PARTS:
            told = loaded
            send(Loading(loaded, total))

    return on_progress
