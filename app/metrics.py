"""All Prometheus metrics: names, units, labels, buckets. Each app has its own registry."""

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from engine.messages import Stats

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG_SECONDS = (*_SECONDS, 120, 300, 600)  # an answer may take 600 s (request_timeout_s)


class Metrics:
    """The server's metrics. The label `outcome` is stop, length, cancelled, timeout or error."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=self.registry)

        def seconds(
            name: str,
            text: str,
            labels: tuple[str, ...] = (),
            buckets: tuple[float, ...] = _SECONDS,
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
            "easel_rerolled_answers_total",
            "Blocks that would have ended an answer with nothing but thoughts in it, and were made "
            "again, each at most once",
        )
        self.thoughts_closed = counter(
            "easel_thoughts_closed_total",
            "Thoughts that were closed before the model did so, by reason: budget, form (the form "
            "that the request demands needs the remaining tokens) or client",
            ("reason",),
        )
        self.worker_starts = counter("easel_worker_starts_total", "Worker processes started")
        self.in_flight = gauge(
            "easel_requests_in_flight", "Open requests: running, queued or waiting for a worker"
        )
        self.queue_depth = gauge(
            "easel_queue_depth", "Requests that the worker has queued for the device"
        )
        self.running = gauge("easel_requests_running", "Requests that run on the device")
        self.kept_prefix_bytes = gauge(
            "easel_kept_prefix_bytes", "Device memory that kept prefixes take, in bytes"
        )
        self.captured_graphs = gauge(
            "easel_captured_graphs",
            "CUDA graphs that the worker has made, most of them before it was ready",
        )
        tasks = gauge("easel_event_loop_tasks", "Tasks on the front end's event loop")
        tasks.set_function(lambda: len(asyncio.all_tasks()))
        self.request_time = seconds(
            "easel_request_seconds",
            "Time from a request's arrival to the end of its response, in seconds, by endpoint. "
            "Requests that got an error status are not counted",
            ("endpoint",),
            _LONG_SECONDS,
        )
        self.time_to_first_block = seconds(
            "easel_time_to_first_block_seconds",
            "Time from a request's arrival to its first block, in seconds",
        )
        self.block_time = seconds(
            "easel_block_seconds",
            "Time that a block takes on the device, its prefill or commit included, in seconds",
        )

    def set_stats(self, stats: Stats) -> None:
        """Set the gauges to the figures that the worker has last sent."""
        self.queue_depth.set(stats.waiting)
        self.running.set(stats.running)
        self.kept_prefix_bytes.set(stats.kept_prefix_bytes)
        self.captured_graphs.set(stats.captured_graphs)

    def exposition(self) -> bytes:
        """Returns all metrics in Prometheus' text format.

        Call this on the event loop, because it counts the loop's tasks.
        """
        return generate_latest(self.registry)
