"""All Prometheus metrics: names, units, labels, buckets. Each app has its own registry."""

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    generate_latest,
)

from engine.messages import Block, ClosedBy, Ready, Stats, StopReason

Outcome = Literal["stop", "length", "cancelled", "timeout", "error"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG_SECONDS = (*_SECONDS, 120, 300, 600)  # an answer may take 600 s (request_timeout_s)
_STEP_SECONDS = (0.001, 0.0025, 0.005, *_SECONDS[:-2])
_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # the released model has at most 48
_TOKENS_PER_STEP = (0.5, 1, 2, 4, 8, 12, 16, 24, 32, 64, 128, 256)
_TOKENS = tuple(4**power for power in range(2, 10))  # 16 to 262,144, the longest context


class Metrics:
    """The server's metrics. The label `outcome` is stop, length, cancelled, timeout or error."""

    def __init__(self, model: str = "") -> None:
        """Start all counts at zero. `model` is the name of the served model."""
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=self.registry)

        def histogram(
            name: str,
            text: str,
            buckets: Sequence[float] = _SECONDS,
            labels: tuple[str, ...] = (),
        ) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        self.requests = counter(
            "easel_requests_total",
            "Answers that have ended, by outcome: stop, length, cancelled, timeout or error",
            ("outcome",),
        )
        self.error_responses = counter(
            "easel_error_responses_total",
            "Requests that got an error status, by status and by the error's code",
            ("status", "code"),
        )
        self.prompt_tokens = counter(
            "easel_prompt_tokens_total", "Prompt tokens, counted once for each answer"
        )
        self.cached_tokens = counter(
            "easel_cached_prompt_tokens_total",
            "Prompt tokens that were in a kept prefix and did not have to be encoded",
        )
        self.prefix_hits = counter(
            "easel_prefix_hits_total", "Answers whose prompt began with a kept prefix"
        )
        self.completion_tokens = counter("easel_completion_tokens_total", "Tokens of answers")
        self.denoising_steps = counter(
            "easel_denoising_steps_total", "Denoising steps of finished blocks"
        )
        self.blocks = counter("easel_blocks_total", "Finished blocks")
        self.drafts_dropped = counter(
            "easel_drafts_dropped_total",
            "Drafts that were not sent because their client had not received what came before them",
        )
        self.block_ends = counter(
            "easel_block_ends_total",
            "Finished blocks, by why they had no further step: confident, stable, certain, limit, "
            "or closed (nothing but a thought's closing mark)",
            ("reason",),
        )
        self.corrections = counter(
            "easel_corrections_total",
            "Denoising steps after which a request's constraint changed the canvas",
        )
        self.speculations = counter(
            "easel_speculations_total",
            "Passes that committed a block before it was final and started the next block",
        )
        self.speculations_won = counter(
            "easel_speculations_won_total",
            "Speculations whose block turned out to be final, which saves a pass",
        )
        self.rerolls = counter(
            "easel_rerolled_blocks_total",
            "Blocks that would have ended an answer with nothing but thoughts in it, and were made "
            "again, each at most once",
        )
        self.thoughts_closed = counter(
            "easel_thoughts_closed_total",
            "Thoughts that were closed before the model did so, by reason: budget, form (the form "
            "that the request demands needs the remaining tokens) or client",
            ("reason",),
        )
        self.worker_up = gauge(
            "easel_worker_up", "1 if a worker has loaded the model and can run requests, else 0"
        )
        self.worker_starts = counter("easel_worker_starts_total", "Worker processes started")
        self.in_flight = gauge(
            "easel_requests_in_flight", "Open requests: running, queued or waiting for a worker"
        )
        self.queue_depth = gauge(
            "easel_queue_depth", "Requests that the worker has queued for the device"
        )
        self.running = gauge("easel_requests_running", "Requests that run on the device")
        self.kv_used = gauge(
            "easel_kv_cache_used_bytes",
            "Device memory that the keys and values of running requests fill, in bytes",
        )
        self.kv_budget = gauge(
            "easel_kv_cache_budget_bytes",
            "Device memory that is reserved for keys and values of running requests, in bytes",
        )
        self.kv_usage = gauge(
            "easel_kv_cache_usage_ratio",
            "Share of the KV caches' memory that running requests fill, from 0 to 1",
        )
        self.kept_prefix_bytes = gauge(
            "easel_kept_prefix_bytes", "Device memory that kept prefixes take, in bytes"
        )
        self.kept_prefix_budget = gauge(
            "easel_kept_prefix_budget_bytes", "Device memory that kept prefixes may take, in bytes"
        )
        self.gpu_used = gauge(
            "easel_gpu_memory_used_bytes",
            "Memory of the GPU that is in use by all programs, in bytes; 0 on a CPU",
        )
        self.gpu_memory = gauge(
            "easel_gpu_memory_bytes", "Memory that the GPU has, in bytes; 0 on a CPU"
        )
        self.captured_graphs = gauge(
            "easel_captured_graphs",
            "CUDA graphs that the worker has made, most of them before it was ready",
        )
        tasks = gauge("easel_event_loop_tasks", "Tasks on the front end's event loop")
        tasks.set_function(lambda: len(asyncio.all_tasks()))
        self.request_time = histogram(
            "easel_request_seconds",
            "Time from a request's arrival to the end of its response, in seconds, by endpoint. "
            "Requests that got an error status are not counted",
            _LONG_SECONDS,
            ("endpoint",),
        )
        self.time_to_first_block = histogram(
            "easel_time_to_first_block_seconds",
            "Time from a request's arrival to its first block, in seconds",
        )
        self.queue_time = histogram(
            "easel_queue_seconds",
            "Time for which the worker lets an answer wait before it first runs, in seconds",
            _LONG_SECONDS,
        )
        self.block_time = histogram(
            "easel_block_seconds",
            "Time that a block takes on the device, its prefill or commit included, in seconds",
        )
        self.step_time = histogram(
            "easel_step_seconds",
            "Time that a denoising step of a finished block has taken, in seconds: its pass, in "
            "which other requests take part too",
            _STEP_SECONDS,
        )
        self.steps_per_block = histogram(
            "easel_steps_per_block", "Denoising steps that a finished block has had", _STEPS
        )
        self.tokens_per_step = histogram(
            "easel_tokens_per_step",
            "Tokens of a finished block, divided by its denoising steps",
            _TOKENS_PER_STEP,
        )
        self.prompt_length = histogram(
            "easel_prompt_length_tokens", "Tokens of an answer's prompt", _TOKENS
        )
        self.completion_length = histogram(
            "easel_completion_length_tokens", "Tokens of an answer that has ended", _TOKENS
        )
        self._model = model
        self._model_info = Info(
            "easel_model", "The served model, and where its worker runs it", registry=self.registry
        )
        self._model_info.info({"model": model})
        # A series that begins at 1 has no increase, so an alert would miss the first of its kind.
        for outcome in get_args(Outcome):
            self.requests.labels(outcome)
        for reason in get_args(StopReason):
            self.block_ends.labels(reason)
        for closed_by in get_args(ClosedBy):
            self.thoughts_closed.labels(closed_by)
        self.error_responses.labels(429, "queue_full")
        build = Info("easel_build", "The running version of Easel", registry=self.registry)
        build.info({"version": version("easel-server")})

    def set_ready(self, ready: Ready) -> None:
        """Note that a worker is ready."""
        self.worker_up.set(1)
        self._model_info.info({"model": self._model, "device": ready.device, "dtype": ready.dtype})

    def set_worker_ended(self) -> None:
        """Note that no worker is running."""
        self.worker_up.set(0)
        self.set_stats(Stats(waiting=0, running=0))

    def count_block(self, block: Block) -> None:
        """Count a finished block, or the result of a decision."""
        self.blocks.inc()
        if block.stopped is not None:
            self.block_ends.labels(block.stopped).inc()
        if block.stopped is not None and block.denoising_steps:
            self.steps_per_block.observe(block.denoising_steps)
            self.tokens_per_step.observe(len(block.tokens) / block.denoising_steps)
        self.denoising_steps.inc(block.denoising_steps)
        self.corrections.inc(block.corrections)
        self.block_time.observe(block.duration_s)
        for step_s in block.step_times_s:
            self.step_time.observe(step_s)
        if block.queue_s is not None:
            self.queue_time.observe(block.queue_s)
        self.speculations.inc(block.speculations)
        self.speculations_won.inc(block.speculation_won)
        self.rerolls.inc(block.rerolled)
        if block.thought_closed is not None:
            self.thoughts_closed.labels(block.thought_closed).inc()

    def set_stats(self, stats: Stats) -> None:
        """Set the gauges to the figures that the worker has last sent."""
        self.queue_depth.set(stats.waiting)
        self.running.set(stats.running)
        self.kv_used.set(stats.kv_used_bytes)
        self.kv_budget.set(stats.kv_budget_bytes)
        self.kv_usage.set(stats.kv_used_bytes / max(stats.kv_budget_bytes, 1))
        self.kept_prefix_bytes.set(stats.kept_prefix_bytes)
        self.kept_prefix_budget.set(stats.kept_prefix_budget_bytes)
        self.gpu_used.set(stats.gpu_used_bytes)
        self.gpu_memory.set(stats.gpu_bytes)
        self.captured_graphs.set(stats.captured_graphs)

    def exposition(self) -> bytes:
        """Returns all metrics in Prometheus' text format.

        Call this on the event loop, because it counts the loop's tasks.
        """
        return generate_latest(self.registry)
