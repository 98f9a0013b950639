"""The stage "released": the released size with random weights, in one choice of formats.

It times a step, its parts and whole blocks, and compares the planned memory with the used one.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import synthetic
from bench.blocks import timed_answers
from bench.gpu.device import DEVICE, HALF, TINY, sync, tiny, wall_ms
from bench.gpu.profile import kernel_table
from bench.gpu.results import guarded, write_row
from bench.gpu.stages import FORMATS
from bench.random_weights import network_config, random_network, weights_bytes
from bench.roofline import TOKENS_A_STEP
from bench.sides import STEP, easel_step, random_prompt
from bench.synthetic import Trial, roofline_s, server_config
from engine.config import EngineConfig, Formats
from engine.device import free_memory
from engine.loading import new_denoiser
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.rows import Segment
from engine.sizing.plan import Plan, gb, make_plan

_ROUNDS = 3 if TINY else 20
_FEW_ROUNDS = 2 if TINY else 10
_CONTEXT, _FAR_CONTEXT = (64, 160) if TINY else (8192, 32768)
_STEPS, _BLOCKS = (8, 1) if TINY else (48, 2)


def check_released_size(name: str) -> None:
    """Time the released size in the formats of this name: step, tail, blocks, memory."""
    if TINY:
        whole = synthetic.SIZES["26b"]
        synthetic.SIZES["26b"] = tiny(dataclasses.replace(whole, layers=whole.layers[-2:]))
    layers = len(synthetic.SIZES["26b"].layers)
    trial = Trial("26b", layers, DEVICE, _CONTEXT, _STEPS, _BLOCKS)
    formats = FORMATS[name]
    config = server_config(_behind(trial, _FAR_CONTEXT), formats)
    stage = f"released {name}"
    plan = make_plan(trial.dimensions, config, cuda=DEVICE.type == "cuda")
    free_bytes = free_memory(DEVICE)
    if plan.total > free_bytes:
        reason = f"it needs {gb(plan.total)}, and {gb(free_bytes)} are free"
        write_row(stage, case="memory", SKIPPED=reason)
        return
    check = _Check(stage, trial, formats, config, _make(stage, trial, formats, config, plan))
    check.steps(_CONTEXT, in_parts=True)
    check.blocks()
    check.steps(_FAR_CONTEXT, in_parts=False)
    _write_memory(stage, plan)


def _behind(trial: Trial, context: int) -> Trial:
    return dataclasses.replace(trial, context=context)


def _make(
    stage: str, trial: Trial, formats: Formats, config: EngineConfig, plan: Plan
) -> DiffusionGemma:
    """Returns the network with random weights."""
    if DEVICE.type == "cuda":
        torch.zeros(1, device=DEVICE)  # makes the CUDA context
    context_gb = _driver_gb()
    started = time.perf_counter()
    network = random_network(
        network_config(trial.dimensions), formats=formats, device=DEVICE, dtype=HALF
    )
    sync()
    write_row(
        stage,
        case="random weights made",
        s=time.perf_counter() - started,
        weights_gb=weights_bytes(network) / 1e9,
        planned_weights_gb=plan.weights_total / 1e9,
        context_gb=context_gb,
        driver_gb=_driver_gb(),
        max_active=config.max_active,
        chunk=config.prefill_chunk,
    )
    return network


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
            case="kernels chosen and compiled, caches and graphs made",
            s=time.perf_counter() - started,
            attention=network.attention_kernel,
            experts=network.each_layer()[0].experts.kernel,
            graphs=self._denoiser.captured_graphs,
            driver_gb=_driver_gb(),
        )

    def steps(self, context: int, *, in_parts: bool) -> None:
        """Time a step of one canvas behind so many tokens, and with `in_parts` its parts too."""
        behind = f"step behind {context:,} tokens"
        try:
            step = guarded(self._stage, behind, partial(self._step, behind, context))
            if step is not None:
                self._profile(f"profile of a {behind}", step, context)
                if in_parts:
                    guarded(self._stage, "parts of a step", partial(self._parts, step, context))
        finally:
            for sequence in list(self._denoiser._slots):
                self._denoiser.release(sequence)

    def _step(self, case: str, context: int) -> Callable[[], object]:
        """Encode a prompt and time steps behind it. Returns a function that runs such a step."""
        prompt = random_prompt(self._trial.dimensions.vocab_size, context)
        started = time.perf_counter()
        step = easel_step(self._denoiser, prompt)
        sync()
        prefill_s = time.perf_counter() - started
        first_ms = [wall_ms(step, rounds=1, warm_ups=0) for _ in range(4)]
        step_ms = wall_ms(step, rounds=_ROUNDS)
        least_s = roofline_s(_behind(self._trial, context), self._formats, 1)
        write_row(
            self._stage,
            case=case,
            context=context,
            step_ms=step_ms,
            roofline_ms=least_s and least_s * 1e3,
            roofline_share=least_s and least_s * 1e3 / step_ms,
            **{f"tokens_s_at_{n}": n / step_ms * 1e3 for n in TOKENS_A_STEP},
            first_prefill_s=prefill_s,
            first_steps_ms=first_ms,
            graphs=self._denoiser.captured_graphs,
        )
        return step

    def _parts(self, step: Callable[[], object], context: int) -> None:
        """Time the network and the tail of a step, and the step without CUDA graphs."""
        denoiser = self._denoiser
        [slot] = denoiser._slots.values()
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

        measured: dict[str, Any] = {
            "network_ms": wall_ms(network_only, rounds=_ROUNDS),
            "tail_ms": wall_ms(tail_only, rounds=_ROUNDS),
            "host_to_launch_ms": _launch_ms(network_only),
        }
        graphs, denoiser._graphs = denoiser._graphs, None
        try:
            measured["dynamic_step_ms"] = wall_ms(step, rounds=_FEW_ROUNDS)
            measured["dynamic_network_ms"] = wall_ms(network_only, rounds=_FEW_ROUNDS)
            self._profile("profile of a dynamic step", step, context)
        finally:
            denoiser._graphs = graphs
        write_row(self._stage, case="parts of a step", context=context, **measured)

    def blocks(self) -> None:
        """Time whole blocks of one canvas and, if a server would run several, of so many."""
        for canvases in sorted({1, self._config.max_active}):
            guarded(self._stage, f"{canvases} canvases", partial(self._block, canvases))

    def _profile(self, case: str, work: Callable[[], object], context: int) -> None:
        def write() -> None:
            table = kernel_table(work, f"{self._stage}, {case}")
            write_row(self._stage, case=case, context=context, **table)

        guarded(self._stage, case, write)

    def _block(self, canvases: int) -> None:
        chunk, rounds = self._config.prefill_chunk, self._trial.rounds
        prompt = random_prompt(self._trial.dimensions.vocab_size, self._trial.context)
        _warm_up, *timed = [
            timed_answers(self._denoiser, prompt, canvases=canvases, chunk=chunk)
            for _ in range(rounds + 1)
        ]
        steps_s = [seconds for each in timed for seconds in each.passes_s[1:]]
        block_s = statistics.median(sum(each.passes_s) for each in timed)
        least_s = roofline_s(self._trial, self._formats, canvases)
        tokens = canvases * self._trial.steps
        write_row(
            self._stage,
            case=f"blocks of {self._trial.steps} steps, {canvases} canvases",
            canvases=canvases,
            block_ms=block_s * 1e3,
            step_ms=statistics.median(steps_s) * 1e3,
            slowest_step_ms=max(steps_s) * 1e3,
            first_pass_ms=statistics.median(each.passes_s[0] for each in timed) * 1e3,
            prefill_tokens_s=statistics.median(each.prefill_tokens_s for each in timed),
            roofline_ms=least_s and least_s * 1e3,
            roofline_share=least_s and least_s / statistics.median(steps_s),
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
    """Write the used memory, by the driver's count and by torch's, beside the planned one."""
    used = {}
    if DEVICE.type == "cuda":
        used = {
            "driver_gb": _driver_gb(),
            "allocated_gb": torch.cuda.memory_allocated() / 1e9,
            "reserved_gb": torch.cuda.memory_reserved() / 1e9,
            "most_allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
        }
    write_row(stage, case="memory", **used, planned_gb=plan.total / 1e9, plan=str(plan))


def _driver_gb() -> float | None:
    """Returns the memory that is in use by the driver's count, or None without a GPU."""
    if DEVICE.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9
