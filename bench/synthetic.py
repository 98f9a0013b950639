"""Measures a model of a published size with random weights on this machine, in each weight format.

The engine runs real steps and blocks behind a prompt that it has encoded, by the same code path as
a server. Random weights never finish a block early, so every block has all its steps. They cannot
show how many steps a real answer needs. Instead, the speed at 10, 15 and 20 tokens a step is given.

Without a GPU the model has only as many layers as fit in memory, with everything else unchanged.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import torch

from bench.blocks import timed_answers
from bench.compare import LEAST_ROUNDS, Row, Show, of_case, peak_bytes, silent
from bench.formats import FORMATS, case_of
from bench.random_weights import network_config, random_network, weights_bytes
from bench.roofline import CONTEXT, TOKENS_A_STEP, find_device, released
from bench.sides import random_prompt
from engine.config import EngineConfig, Formats
from engine.denoise.denoiser import Denoiser
from engine.denoise.sampler import SamplerConfig
from engine.device import (
    choose_device,
    choose_dtype,
    device_name,
    find_gpu,
    free_memory,
    out_of_memory,
)
from engine.loading import new_denoiser
from engine.sizing.dimensions import RELEASED_MODEL, Dimensions
from engine.sizing.plan import gb, make_plan
from engine.sizing.profiles import NO_PROFILE, apply_profile, choose_profile
from engine.sizing.roofline import step_cost

# The vision tower is left out, because it takes no part in a step.
SIZES = {"26b": replace(released(), tower=None)}
COLUMNS = [
    "weights_gb",
    "above_weights_gb",
    "planned_gb",
    "path",
    "prefill_tokens_s",
    "step_ms",
    "block_ms",
    *(f"tokens_s_at_{n}" for n in TOKENS_A_STEP),
    "roofline_ms",
    "roofline_share",
]
# No entropy is below this threshold, so no block ends early.
_SAMPLER = SamplerConfig(confidence_threshold=-1.0)
_WARM_UP_STEPS = 2  # one that also encodes, and one that only denoises and is captured
# Without a GPU a step takes seconds, so blocks are fewer and have fewer steps and less context.
_CPU_CONTEXT, _CPU_STEPS, _CPU_ROUNDS = 1024, 4, 1
_CASE = 200  # characters of a case, which may say why a format failed
_CPU_SHARE = 0.75  # of free memory; on a machine that swaps the results would be useless


@dataclass(frozen=True)
class Trial:
    """A measurement to run. `context` is the number of tokens in front of the canvas."""

    size: str
    layers: int
    device: torch.device
    context: int = CONTEXT
    steps: int = _SAMPLER.max_denoising_steps  # of a block
    rounds: int = LEAST_ROUNDS  # blocks to measure, whose medians are the results

    @property
    def dimensions(self) -> Dimensions:
        """The size's dimensions with `layers` layers.

        These are the first ones and the last one, which is a full layer in every such model.
        """
        whole = SIZES[self.size]
        return replace(whole, layers=(*whole.layers[: self.layers - 1], whole.layers[-1]))

    @property
    def sampler(self) -> SamplerConfig:
        return replace(_SAMPLER, max_denoising_steps=self.steps)

    def __str__(self) -> str:
        of, cpu = len(SIZES[self.size].layers), self.device.type == "cpu"
        return (
            f"{'No GPU that torch can use. ' if cpu else ''}{self.size}, {self.layers} of {of} "
            f"layers, random weights, on {device_name(self.device)}: blocks of {self.steps} steps "
            f"behind {self.context:,} tokens, {self.rounds} for each format"
        )


def choose_trial(size: str, *, layers: int | None, rounds: int | None) -> Trial:
    """Returns the measurement for this machine.

    It runs on the GPU with all layers. Without a GPU it runs on the CPU, with as many layers as fit
    in memory unquantised. `layers` and `rounds` override these choices.
    """
    device = choose_device(EngineConfig())
    if device.type == "cuda":
        whole = len(SIZES[size].layers)
        return Trial(size, layers or whole, device, rounds=rounds or LEAST_ROUNDS)
    trial = Trial(size, 1, device, _CPU_CONTEXT, _CPU_STEPS, rounds or _CPU_ROUNDS)
    return replace(trial, layers=layers or most_layers(trial, _memory_bytes(device)))


def most_layers(trial: Trial, memory_bytes: int) -> int:
    """Returns the most layers with which the unquantised model fits in memory, at least one."""
    trials = [replace(trial, layers=n + 1) for n in range(len(SIZES[trial.size].layers))]
    needs = [(_needs_bytes(each, Formats()), each.layers) for each in trials]
    return max((layers for need, layers in needs if need <= memory_bytes), default=1)


def rows(trial: Trial, show: Show = silent) -> Iterator[Row]:
    """Yield the rows of each format.

    A format that fits has one row for a canvas alone and, if a server would run several, one for so
    many canvases. A format that does not fit or that fails has a row that says so.
    """
    for formats in FORMATS:
        case, needs = _case(trial, formats), _needs_bytes(trial, formats)
        planned = {"planned_gb": needs / 1e9}
        try:
            memory = _memory_bytes(trial.device)
            if needs > memory:
                case = f"{case}: does not fit, needs {gb(needs)} of {gb(memory)}"
                yield {"case": case, "step_ms": None, **planned}
                continue
            for row in _measured(trial, formats, of_case(show, case)):
                yield row | planned
        except Exception as error:  # a kernel, a driver or a library may raise anything
            reason = "out of memory" if out_of_memory(error) else f"{type(error).__name__}: {error}"
            case = f"{case}: {' '.join(reason.split())}"[:_CASE]
            yield {"case": case, "step_ms": None, **planned}


def server_config(trial: Trial, formats: Formats) -> EngineConfig:
    """Returns the configuration of a server, with canvases and prefill chunks by its profile.

    Without a profile it has one canvas. Speculation and kept prefixes are off, because neither is
    part of a step.
    """
    config = EngineConfig(
        model=RELEASED_MODEL,
        max_context=trial.context + trial.dimensions.canvas_length,
        prefix_cache_mib=0,
        speculate=False,
        **formats.options,
    )
    profile = choose_profile(config, find_gpu(trial.device))
    if profile == NO_PROFILE:
        return config.model_copy(update={"max_active": 1})
    return apply_profile(config, profile, quantized=False)


def roofline_s(trial: Trial, formats: Formats, canvases: int) -> float | None:
    """Returns the least time of a step with 16-bit products; None if the device is unknown."""
    gpu = find_gpu(trial.device)
    device = None if gpu is None else find_device(gpu.name)
    if device is None:
        return None
    cost = step_cost(trial.dimensions, formats, context=trial.context)
    return cost.seconds(bandwidth=device.bandwidth, peak=device.bf16, canvases=canvases)


def _measured(trial: Trial, formats: Formats, show: Show) -> Iterator[Row]:
    config, device = server_config(trial, formats), trial.device
    network = random_network(
        network_config(trial.dimensions),
        formats=formats,
        device=device,
        dtype=choose_dtype(config, device),
        show=show,
    )
    prompt = random_prompt(trial.dimensions.vocab_size, trial.context)
    batches = sorted({1, config.max_active})
    warm: list[Denoiser] = []

    def warm_up() -> None:
        sampler = replace(trial.sampler, max_denoising_steps=_WARM_UP_STEPS)
        warm.append(new_denoiser(network, sampler, config))
        for canvases in batches:
            timed_answers(warm[0], prompt, canvases=canvases, chunk=config.prefill_chunk)

    show("warming up")
    above_bytes = peak_bytes(warm_up, device)
    [denoiser] = warm
    denoiser.sampler = trial.sampler
    for canvases in batches:
        answers = []
        for number in range(1, trial.rounds + 1):
            together = f", {canvases} canvases together" if canvases > 1 else ""
            show(f"block {number} of {trial.rounds}{together}")
            answers.append(
                timed_answers(denoiser, prompt, canvases=canvases, chunk=config.prefill_chunk)
            )
        step_s = median(seconds for each in answers for seconds in each.passes_s[1:])
        block_s = median(sum(each.passes_s) for each in answers)
        least_s = roofline_s(trial, formats, canvases)
        yield {
            "case": _case(trial, formats) + (f", {canvases} canvases" if canvases > 1 else ""),
            "step_ms": step_s * 1e3,
            "block_ms": block_s * 1e3,
            **{f"tokens_s_at_{n}": n * canvases * trial.steps / block_s for n in TOKENS_A_STEP},
            "prefill_tokens_s": median(each.prefill_tokens_s for each in answers),
            "roofline_ms": None if least_s is None else least_s * 1e3,
            "roofline_share": None if least_s is None else least_s / step_s,
            "weights_gb": weights_bytes(network) / 1e9,
            "above_weights_gb": above_bytes / 1e9,
            "path": "CUDA graph" if denoiser._graphs and denoiser._graphs.on else "dynamic",
            "canvases": canvases,
            "steps": trial.steps,
            "rounds": trial.rounds,
            "context": trial.context,
            "layers": trial.layers,
            "device": device_name(device),
        }


def _needs_bytes(trial: Trial, formats: Formats) -> int:
    cuda = trial.device.type == "cuda"
    return make_plan(trial.dimensions, server_config(trial, formats), cuda=cuda).total


def _memory_bytes(device: torch.device) -> int:
    """Returns the bytes that may be used, after freeing those of the previous format."""
    gc.collect()
    if device.type == "cpu":
        return round(_CPU_SHARE * free_memory(device))
    torch.cuda.empty_cache()
    return free_memory(device)


def _case(trial: Trial, formats: Formats) -> str:
    plain = {torch.float32: "float32", torch.bfloat16: "BF16"}[
        choose_dtype(EngineConfig(), trial.device)
    ]
    return plain if formats == Formats() else case_of(formats).replace("BF16", plain)
