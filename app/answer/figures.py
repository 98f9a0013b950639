"""The figures of an answer, and the objects that report them to clients."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.logs import log_answer
from app.metrics import Metrics, Outcome


@dataclass
class Figures:
    """The counts and times of one answer. They are updated while it is made."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0
    blocks: int = 0
    denoising_steps: int = 0
    prediction_tokens: int = 0  # of the request's prediction
    accepted_prediction_tokens: int = 0  # those of them that the answer has
    corrections: int = 0  # of the canvas, by the request's constraint
    time_to_first_block_s: float = 0.0
    duration_s: float = 0.0
    outcome: Outcome = "cancelled"  # until the answer ends in another way

    def record(self, metrics: Metrics) -> None:
        """Add the figures to the metrics and the log. Call this once, when the answer has ended."""
        metrics.requests.labels(self.outcome).inc()
        metrics.prompt_tokens.inc(self.prompt_tokens)
        metrics.cached_tokens.inc(self.cached_tokens)
        metrics.prefix_hits.inc(self.cached_tokens > 0)
        metrics.completion_tokens.inc(self.completion_tokens)
        metrics.prompt_length.observe(self.prompt_tokens)
        metrics.completion_length.observe(self.completion_tokens)
        if self.blocks:
            metrics.time_to_first_block.observe(self.time_to_first_block_s)
        log_answer(asdict(self))


def usage(figures: Sequence[Figures], n: int) -> dict[str, Any]:
    """Returns OpenAI's usage object for all choices. A prompt with n answers is counted once.

    A prediction is counted once for each answer, and only if there is one.
    """
    prompts = figures[::n]
    prompt_tokens = sum(each.prompt_tokens for each in prompts)
    completion_tokens = sum(each.completion_tokens for each in figures)
    details = {"reasoning_tokens": sum(each.thinking_tokens for each in figures)}
    predicted = sum(each.prediction_tokens for each in figures)
    if predicted:
        accepted = sum(each.accepted_prediction_tokens for each in figures)
        details["accepted_prediction_tokens"] = accepted
        details["rejected_prediction_tokens"] = predicted - accepted
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in prompts)},
        "completion_tokens_details": details,
    }


def diffusion(figures: Sequence[Figures]) -> dict[str, Any]:
    """Returns the extra object `diffusion`, which SDKs ignore. Speed is tokens over wall time."""
    tokens = sum(each.completion_tokens for each in figures)
    steps = sum(each.denoising_steps for each in figures)
    duration_s = max(each.duration_s for each in figures)
    return {
        "blocks": sum(each.blocks for each in figures),
        "denoising_steps": steps,
        "corrections": sum(each.corrections for each in figures),
        "tokens_per_step": round(tokens / max(steps, 1), 3),
        "time_to_first_block_s": round(min(each.time_to_first_block_s for each in figures), 6),
        "tokens_per_second": round(tokens / duration_s, 3),
    }
