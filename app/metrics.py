"""Every Prometheus metric: name, unit, labels, buckets. One registry an app, nothing global."""

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from engine.messages import Stats

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The server's counters; `outcome` is stop, length, cancelled, timeout or error."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=self.registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, buckets=_SECONDS, registry=self.registry)

        self.requests = counter(
            "easel_requests_total", "Requests that the worker was given, by end", ("outcome",)
        )
        self.prompt_tokens = counter(
            "easel_prompt_tokens_total", "Tokens of prompts, once for each answer to one"
        )
        self.cached_tokens = counter(
            "easel_cached_prompt_tokens_total", "Tokens of prompts that were not encoded again"
        )
        self.completion_tokens = counter("easel_completion_tokens_total", "Tokens of answers")
        self.denoising_steps = counter("easel_denoising_steps_total", "Denoising steps")
        self.blocks = counter("easel_blocks_total", "Finished blocks")
        self.speculations = counter(
            "easel_speculations_total", "Passes that bet on a block and started the next"
        )
        self.speculations_won = counter(
            "easel_speculations_won_total", "Such passes whose block was then finished as bet on"
        )
        self.rerolls = counter(
            "easel_rerolled_answers_total", "Answers whose first block came out empty, once"
        )
        self.worker_starts = counter("easel_worker_starts_total", "Worker processes started")
        self.in_flight = gauge("easel_requests_in_flight", "Requests with the worker")
        self.queue_depth = gauge("easel_queue_depth", "Requests waiting for the device")
        self.running = gauge("easel_requests_running", "Requests on the device")
        self.kept_prefix_bytes = gauge(
            "easel_kept_prefix_bytes", "Device memory that kept prefixes hold"
        )
        tasks = gauge("easel_event_loop_tasks", "Tasks on the front end's event loop")
        tasks.set_function(lambda: len(asyncio.all_tasks()))
        self.time_to_first_block = seconds(
            "easel_time_to_first_block_seconds", "From a request's arrival to its first block"
        )
        self.block_time = seconds(
            "easel_block_seconds", "A block's time on the device, its prefill or commit included"
        )

    def set_stats(self, stats: Stats) -> None:
        """What the worker last said of itself."""
        self.queue_depth.set(stats.waiting)
        self.running.set(stats.running)
        self.kept_prefix_bytes.set(stats.kept_prefix_bytes)

    def exposition(self) -> bytes:
        """Prometheus' text format. Called on the event loop, whose tasks it counts."""
        return generate_latest(self.registry)
