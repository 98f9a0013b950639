"""The stage "released": the released size with random weights, in one choice of formats.

It times a step, its parts and whole blocks, and compares the planned memory with the used one.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench import synthetic
from bench.blocks import timed_answers
from bench.gpu_check.device import DEVICE, HALF, TINY, sync, tiny, wall_ms
from bench.gpu_check.profile import kernel_table
from bench.gpu_check.results import guarded, write_row
from bench.random_weights import network_config, random_network, weights_bytes
from bench.roofline import TOKENS_A_STEP
from bench.sides import STEP, easel_step, random_prompt
from bench.synthetic import Trial, roofline_s, server_config
from engine.config import EngineConfig, Formats
from engine.denoise.denoiser import Denoiser
from engine.loading import new_denoiser
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.rows import Segment
from engine.sizing.plan import Plan, make_plan

_FORMATS = {
    "bf16": Formats(),
    "int8": Formats("int8", "int8"),
    "int8x": Formats("int8"),
    "fp8": Formats("fp8", "fp8"),
    "int4": Formats("int4", "int8"),
    "int4x": Formats("int4"),
    "small": Formats("int4", "int8", "int8"),
}
_ROUNDS = 3 if TINY else 20
_FEW_ROUNDS = 2 if TINY else 10
_FAR_TOKENS = 32000
_FAR_CONTEXT = 33024  # tokens that the caches hold: the far prompt and some canvases


def check_released_size(name: str, *, compiled: bool) -> None:
    """Time the released size in the formats of this name: step, tail, blocks, memory.

    If `compiled` is set, the layers are compiled, and only a step is timed.
    """
    if name not in _FORMATS:
        raise SystemExit(f"unknown formats {name!r}: allowed are {', '.join(_FORMATS)}")
    if TINY:
        whole = synthetic.SIZES["26b"]
        synthetic.SIZES["26b"] = tiny(dataclasses.replace(whole, layers=whole.layers[-2:]))
    layers = len(synthetic.SIZES["26b"].layers)
    context, steps, rounds = (64, 8, 1) if TINY else (8192, 48, 2)
    trial = Trial("26b", layers, DEVICE, context, steps, rounds)
    formats = _FORMATS[name]
    config = server_config(trial, formats).model_copy(update={"compile": compiled})
    stage = f"released {name}" + (" compiled" if compiled else "")
    network, plan = _make(stage, trial, formats, config)
    if not TINY:
        config = config.model_copy(update={"max_context": _FAR_CONTEXT})
    check = _Check(stage, trial, formats, config, network)
    check.step()
    if not compiled:
        check.blocks()
        if DEVICE.type == "cuda":
            _write_memory(stage, plan)
            guarded(stage, "far", check.far)


def _make(
    stage: str, trial: Trial, formats: Formats, config: EngineConfig
) -> tuple[DiffusionGemma, Plan]:
    """Returns the network with random weights, and the plan of its memory."""
    if DEVICE.type == "cuda":
        torch.zeros(1, device=DEVICE)  # makes the CUDA context
    context_gb = _driver_gb()
    started = time.perf_counter()
    network = random_network(
        network_config(trial.dimensions), formats=formats, device=DEVICE, dtype=HALF
    )
    sync()
    seconds = time.perf_counter() - started
    plan = make_plan(trial.dimensions, config, cuda=DEVICE.type == "cuda")
    write_row(
        stage,
        case="made",
        s=seconds,
        weights_gb=weights_bytes(network) / 1e9,
        planned_weights_gb=plan.weights_total / 1e9,
        context_gb=context_gb,
        driver_gb=_driver_gb(),
        max_active=config.max_active,
        chunk=config.prefill_chunk,
    )
    return network, plan


class _Check:
    """The measurements of one network, which share its denoiser."""

    def __init__(
        self,
        stage: str,
        trial: Trial,
        formats: Formats,
        config: EngineConfig,
        network: DiffusionGemma,
    ) -> None:
        """Choose the kernels and allocate the caches."""
        self._stage, self._trial, self._formats, self._config = stage, trial, formats, config
        started = time.perf_counter()
        self._denoiser = new_denoiser(network, trial.sampler, config)
        sync()
        write_row(
            stage,
            case="kernels chosen (compiled at first use), caches made",
            s=time.perf_counter() - started,
            attention=network.attention_kernel,
            experts=network.each_layer()[0].experts.kernel,
            graphs=self._denoiser._graphs is not None,
            driver_gb=_driver_gb(),
        )
        self._prompt = random_prompt(trial.dimensions.vocab_size, trial.context)

    def step(self) -> None:
        """Time a step of one canvas: whole and in parts, as a graph and dynamic."""
        denoiser = self._denoiser
        step = self._prefill()
        self._first_steps(step)
        step_ms = wall_ms(step, rounds=_ROUNDS)
        [(sequence, slot)] = denoiser._slots.items()
        canvas = slot.canvas
        assert canvas is not None
        segments = [Segment(slot.cache, canvas.tokens, causal=False)]

        @torch.inference_mode()
        def network_only() -> Tensor:
            return denoiser._run_model(segments, [canvas])

        hidden = network_only()

        @torch.inference_mode()
        def tail_only() -> None:
            canvas.step_index = STEP
            denoiser._step.run(hidden, [canvas])

        network_ms, launch_ms = wall_ms(network_only, rounds=_ROUNDS), _launch_ms(network_only)
        tail_ms = wall_ms(tail_only, rounds=_ROUNDS)
        graphs, denoiser._graphs = denoiser._graphs, None
        dynamic_step_ms = wall_ms(step, rounds=_FEW_ROUNDS)
        dynamic_network_ms = wall_ms(network_only, rounds=_FEW_ROUNDS)
        denoiser._graphs = graphs
        least_s = roofline_s(self._trial, self._formats, 1)
        write_row(
            self._stage,
            case=f"one canvas behind {self._trial.context}",
            step_ms=step_ms,
            network_ms=network_ms,
            tail_ms=tail_ms,
            dynamic_step_ms=dynamic_step_ms,
            dynamic_network_ms=dynamic_network_ms,
            host_to_launch_ms=launch_ms,
            roofline_ms=least_s and least_s * 1e3,
            roofline_share=least_s and least_s * 1e3 / step_ms,
            **{f"tokens_s_at_{n}": n / step_ms * 1e3 for n in TOKENS_A_STEP},
        )
        self._profile("profile of a step", step)
        denoiser._graphs = None
        self._profile("profile of a dynamic step", step)
        denoiser._graphs = graphs
        denoiser.release(sequence)

    def blocks(self) -> None:
        """Time whole blocks of one canvas and, if a server would run several, of so many."""
        for canvases in sorted({1, self._config.max_active}):
            guarded(self._stage, f"{canvases} canvases", partial(self._block, canvases))

    def far(self) -> None:
        """Time a step behind a long prompt."""
        prompt = random_prompt(self._trial.dimensions.vocab_size, _FAR_TOKENS)
        step = easel_step(self._denoiser, prompt)
        ms = wall_ms(step)
        write_row(self._stage, case=f"one canvas behind {_FAR_TOKENS}", step_ms=ms)

    def _prefill(self) -> Callable[[], object]:
        """Encode the prompt. Returns a function that runs a step behind it."""
        started = time.perf_counter()
        step = easel_step(self._denoiser, self._prompt)
        sync()
        seconds = time.perf_counter() - started
        write_row(self._stage, case="first prefill", s=seconds)
        return step

    def _first_steps(self, step: Callable[[], object]) -> None:
        times_ms = []
        for _ in range(4):
            started = time.perf_counter()
            step()
            sync()
            times_ms.append((time.perf_counter() - started) * 1e3)
        write_row(
            self._stage,
            case="first steps (the first one captures)",
            each_ms=times_ms,
            graphs_on=_graphs_on(self._denoiser),
        )

    def _profile(self, case: str, work: Callable[[], object]) -> None:
        def write() -> None:
            write_row(self._stage, case=case, **kernel_table(work, f"{self._stage}, {case}"))

        guarded(self._stage, case, write)

    def _block(self, canvases: int) -> None:
        chunk, rounds = self._config.prefill_chunk, self._trial.rounds
        _warm_up, *timed = [
            timed_answers(self._denoiser, self._prompt, canvases=canvases, chunk=chunk)
            for _ in range(rounds + 1)
        ]
        steps_s = [seconds for each in timed for seconds in each.passes_s[1:]]
        block_s = statistics.median(sum(each.passes_s) for each in timed)
        least_s = roofline_s(self._trial, self._formats, canvases)
        tokens = canvases * self._trial.steps
        write_row(
            self._stage,
            case=f"blocks of {self._trial.steps} steps, {canvases} canvases",
            block_ms=block_s * 1e3,
            step_ms=statistics.median(steps_s) * 1e3,
            slowest_step_ms=max(steps_s) * 1e3,
            first_pass_ms=statistics.median(each.passes_s[0] for each in timed) * 1e3,
            prefill_tokens_s=statistics.median(each.prefill_tokens_s for each in timed),
            roofline_ms=least_s and least_s * 1e3,
            **{f"tokens_s_at_{n}": n * tokens / block_s for n in TOKENS_A_STEP},
        )


def _launch_ms(work: Callable[[], object]) -> float:
    """Returns the host's time for `work`, without waiting for the device in between."""
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        work()
    seconds = time.perf_counter() - started
    sync()
    return seconds * 1e3 / _ROUNDS


def _write_memory(stage: str, plan: Plan) -> None:
    """Write the GPU's used memory beside the planned one."""
    write_row(
        stage,
        case="memory",
        allocated_gb=torch.cuda.memory_allocated() / 1e9,
        reserved_gb=torch.cuda.memory_reserved() / 1e9,
        most_allocated_gb=torch.cuda.max_memory_allocated() / 1e9,
        driver_gb=_driver_gb(),
        planned_gb={
            "weights": plan.weights_total / 1e9,
            "kv": plan.kv / 1e9,
            "activations": plan.activations / 1e9,
            "graphs": plan.graphs / 1e9,
            "libraries": plan.libraries / 1e9,
        },
    )


def _driver_gb() -> float | None:
    """Returns the memory that is in use by the driver's count, or None without a GPU."""
    if DEVICE.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9


def _graphs_on(denoiser: Denoiser) -> bool:
    return denoiser._graphs is not None and denoiser._graphs.on
