"""What a soak's figures must be: every complaint is a sentence, none means that all is well.

Memory is flat if, behind a warm-up of a third of the time, the line through a process' samples
rises over the rest by no more than 8 MiB, or 4 % of its memory. The accounts are held request by
request: the server's log has a line for each answer, which must be what its client saw.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import linear_regression, mean, quantiles
from typing import Any

from tests.soak.process import Figures, Sample
from tests.soak.traffic import Seen

WARM_UP = 1 / 3
MOST_RISE_BYTES, MOST_RISE = 8 * 2**20, 0.04
# More than before the traffic: what libraries open at their first use, and sse-starlette's task
# that waits for a shutdown from the first stream on.
MORE_FILES, MORE_TASKS = 2, 1

Line = dict[str, Any]  # of the log
OUTCOMES = ("stop", "length", "cancelled", "error")


def rise_bytes(samples: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Of (seconds, bytes): how far they rise behind the warm-up, and how far they may."""
    end = samples[-1][0]
    warm = [each for each in samples if each[0] >= WARM_UP * end]
    seconds, sizes = zip(*warm, strict=True)
    slope = linear_regression(seconds, sizes).slope
    return slope * (seconds[-1] - seconds[0]), max(MOST_RISE_BYTES, MOST_RISE * mean(sizes))


def memory(samples: Sequence[Sample]) -> list[str]:
    """Complaints about either process' resident memory."""
    found = []
    for name in ("front", "worker"):
        rise, most = rise_bytes([(s.seconds, getattr(s, f"{name}_bytes")) for s in samples])
        if rise > most:
            found.append(
                f"the {name}'s memory rose by {rise / 2**20:.1f} MiB behind the warm-up, "
                f"more than {most / 2**20:.1f}"
            )
    return found


def leaks(before: Sample, after: Sample) -> list[str]:
    """Complaints about what is left when every client has gone."""
    found = [
        f"{name} is {after.figures[(name,)]:.0f} at the end"
        for name in ("easel_requests_in_flight", "easel_requests_running", "easel_queue_depth")
        if after.figures[(name,)]
    ]
    if after.figures[("easel_worker_starts_total",)] != 1:
        found.append("the worker has died")
    tasks = ("easel_event_loop_tasks",)
    if after.figures[tasks] > before.figures[tasks] + MORE_TASKS:
        found.append(f"{after.figures[tasks] - before.figures[tasks]:.0f} tasks more than before")
    for name in ("front_files", "worker_files"):
        more = getattr(after, name) - getattr(before, name)
        if more > MORE_FILES:
            found.append(f"{name}: {more} more than before")
    return found


def accounts(seen: Iterable[Seen], log: Sequence[Line], figures: Figures) -> list[str]:
    """Complaints where clients, log and metrics do not agree."""
    answers = [line for line in log if line["logger"] == "app.answers"]
    by_id: dict[str, list[Line]] = {}
    for line in answers:
        by_id.setdefault(line["request_id"], []).append(line)
    found = []
    for one in seen:
        complaint = _wrong(one, by_id.pop(one.id, []))
        if complaint:
            found.append(f"{one}: {complaint}")
    found += [f"nobody asked for {name}" for name in by_id]
    found += [
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
    found += [
        f"{key} is {figures.get(key, 0):.0f}, by the log {total}"
        for key, total in totals.items()
        if figures.get(key, 0) != total
    ]
    # The worker may finish a block more of an answer that has ended here before it hears of it.
    blocks, counted = sum(line["blocks"] for line in answers), figures[("easel_blocks_total",)]
    early = sum(line["outcome"] in ("cancelled", "stop", "error") for line in answers)
    if not blocks <= counted <= blocks + 2 * early:
        found.append(f"easel_blocks_total is {counted:.0f}, by the log {blocks}")
    return found


def _wrong(one: Seen, lines: list[Line]) -> str | None:
    """What of one request's lines in the log does not fit what its client saw."""
    outcomes = Counter(line["outcome"] for line in lines)
    told = ", ".join(f"{count} {name}" for name, count in outcomes.items()) or "nothing"
    tokens = sum(line["completion_tokens"] for line in lines)
    match one.end:
        case "finished":
            whole = outcomes["stop"] + outcomes["length"] == len(lines) == one.choices
            fits = whole and tokens == one.tokens
        case "failed":
            fits = outcomes["error"] >= 1 and len(lines) <= one.choices
        case "refused":
            fits = not lines
        case "left":
            fits = (one.events > 0) <= len(lines) <= one.choices
    return None if fits else f"the log has {told} with {tokens} tokens"


def first_block_s(log: Iterable[Line]) -> tuple[float, float]:
    """p50 and p95 of the time from a request's arrival to its first block."""
    times = [line["time_to_first_block_s"] for line in log if line.get("blocks")]
    cuts = quantiles(times, n=20)
    return cuts[9], cuts[18]
