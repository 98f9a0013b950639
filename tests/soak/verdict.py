"""The requirements of a soak. `memory`, `leaks` and `accounts` return a sentence per complaint.

Memory is flat if the line through a process' samples after a warm-up of a third of the time rises
by at most 8 MiB or 4 % of the process' memory. The accounts are checked request by request: the
server's log has a line for each answer, which must agree with what the client observed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import linear_regression, mean, quantiles
from typing import Any

from tests.running_server import Figures
from tests.soak.process import Sample
from tests.soak.traffic import Observation

WARM_UP = 1 / 3
MOST_RISE_BYTES, MOST_RISE = 8 * 2**20, 0.04
# What may be there in addition to before the traffic: files that libraries open at their first use,
# and a task of sse-starlette that waits for a shutdown from the first stream on.
MORE_FILES, MORE_TASKS = 2, 1

Line = dict[str, Any]  # of the log
OUTCOMES = ("stop", "length", "cancelled", "error")


def rise_bytes(samples: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Returns by how much samples of (seconds, bytes) rise after the warm-up, and the limit."""
    end = samples[-1][0]
    warm = [each for each in samples if each[0] >= WARM_UP * end]
    seconds, sizes = zip(*warm, strict=True)
    slope = linear_regression(seconds, sizes).slope
    return slope * (seconds[-1] - seconds[0]), max(MOST_RISE_BYTES, MOST_RISE * mean(sizes))


def memory(samples: Sequence[Sample]) -> list[str]:
    """Returns complaints about the resident memory of either process."""
    complaints = []
    for name in ("front", "worker"):
        rise, most = rise_bytes([(s.seconds, getattr(s, f"{name}_bytes")) for s in samples])
        if rise > most:
            complaints.append(
                f"the {name}'s memory rose by {rise / 2**20:.1f} MiB after the warm-up, "
                f"more than {most / 2**20:.1f}"
            )
    return complaints


def leaks(before: Sample, after: Sample) -> list[str]:
    """Returns complaints about what is left over when every client has gone."""
    complaints = [
        f"{name} is {after.figures[(name,)]:.0f} at the end"
        for name in ("easel_requests_in_flight", "easel_requests_running", "easel_queue_depth")
        if after.figures[(name,)]
    ]
    if after.figures[("easel_worker_starts_total",)] != 1:
        complaints.append("the worker has died")
    tasks = ("easel_event_loop_tasks",)
    more_tasks = after.figures[tasks] - before.figures[tasks]
    if more_tasks > MORE_TASKS:
        complaints.append(f"{more_tasks:.0f} tasks more than before")
    for name in ("front_files", "worker_files"):
        more = getattr(after, name) - getattr(before, name)
        if more > MORE_FILES:
            complaints.append(f"{name}: {more} more than before")
    return complaints


def accounts(
    observations: Iterable[Observation], log: Sequence[Line], figures: Figures
) -> list[str]:
    """Returns complaints where clients, log and metrics do not agree."""
    answers = [line for line in log if line["logger"] == "app.answers"]
    by_id: dict[str, list[Line]] = {}
    for line in answers:
        by_id.setdefault(line["request_id"], []).append(line)
    complaints = []
    for observed in observations:
        complaint = _disagreement(observed, by_id.pop(observed.id, []))
        if complaint:
            complaints.append(f"{observed}: {complaint}")
    complaints += [f"no client sent the request {name}" for name in by_id]
    complaints += [
        f"log: {line['message']} {line.get('exception', '')}"
        for line in log
        if line["level"] in ("error", "critical")
    ]
    totals: dict[tuple[str, ...], int] = {
        **{("easel_requests_total", name): 0 for name in OUTCOMES},
        **Counter(("easel_requests_total", line["outcome"]) for line in answers),
        ("easel_prompt_tokens_total",): sum(line["prompt_tokens"] for line in answers),
        ("easel_completion_tokens_total",): sum(line["completion_tokens"] for line in answers),
        ("easel_time_to_first_block_seconds_count",): sum(line["blocks"] > 0 for line in answers),
    }
    complaints += [
        f"{key} is {figures.get(key, 0):.0f}, but {total} in the log"
        for key, total in totals.items()
        if figures.get(key, 0) != total
    ]
    # When an answer ends early, the worker may finish more of its blocks before it learns of that.
    blocks, counted = sum(line["blocks"] for line in answers), figures[("easel_blocks_total",)]
    early = sum(line["outcome"] in ("cancelled", "stop", "error") for line in answers)
    if not blocks <= counted <= blocks + 2 * early:
        complaints.append(f"easel_blocks_total is {counted:.0f}, but {blocks} in the log")
    return complaints


def _disagreement(observed: Observation, lines: list[Line]) -> str | None:
    """Returns how a request's lines of the log disagree with its client, or None if they agree."""
    outcomes = Counter(line["outcome"] for line in lines)
    logged = ", ".join(f"{count} {name}" for name, count in outcomes.items()) or "nothing"
    tokens = sum(line["completion_tokens"] for line in lines)
    match observed.end:
        case "finished":
            whole = outcomes["stop"] + outcomes["length"] == len(lines) == observed.choices
            agrees = whole and tokens == observed.tokens
        case "failed":
            agrees = outcomes["error"] >= 1 and len(lines) <= observed.choices
        case "refused":
            agrees = not lines
        case "left":
            agrees = (observed.events > 0) <= len(lines) <= observed.choices
    return None if agrees else f"the log has {logged} with {tokens} tokens"


def first_block_s(log: Iterable[Line]) -> tuple[float, float]:
    """Returns p50 and p95 of the time from a request's arrival to its first block."""
    times = [line["time_to_first_block_s"] for line in log if line.get("blocks")]
    cuts = quantiles(times, n=20)
    return cuts[9], cuts[18]
