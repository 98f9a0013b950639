"""The verdict of a soak complains about every fault that it looks for."""

import pytest

from tests.soak.process import Sample
from tests.soak.traffic import Observation
from tests.soak.verdict import accounts, leaks, memory

MIB = 2**20
IDLE = {
    ("easel_requests_in_flight",): 0,
    ("easel_requests_running",): 0,
    ("easel_queue_depth",): 0,
    ("easel_worker_starts_total",): 1,
    ("easel_event_loop_tasks",): 7,
}
LINE = {
    "logger": "app.answers",
    "level": "info",
    "message": "answer",
    "request_id": "a",
    "outcome": "stop",
    "prompt_tokens": 5,
    "completion_tokens": 9,
    "blocks": 1,
}
FIGURES = {
    ("easel_requests_total", "stop"): 1,
    ("easel_prompt_tokens_total",): 5,
    ("easel_completion_tokens_total",): 9,
    ("easel_time_to_first_block_seconds_count",): 1,
    ("easel_blocks_total",): 1,
}
FINISHED = Observation("a", 1, "finished", 200, 1, tokens=9)


def sample(seconds=0, front=100 * MIB, worker=300 * MIB, files=20, **changed):
    figures = {**IDLE, **{(f"easel_{name}",): value for name, value in changed.items()}}
    return Sample(seconds, front, worker, files, 10, figures)


def test_memory_that_rises_only_during_the_warm_up_is_flat():
    rising = [sample(s, front=(100 + min(s, 200)) * MIB) for s in range(0, 601, 5)]
    assert memory(rising) == []


def test_memory_that_rises_after_the_warm_up_is_a_complaint():
    (complaint,) = memory([sample(s, front=100 * MIB + s * MIB // 20) for s in range(0, 601, 5)])
    assert complaint.startswith("the front's memory rose by 20.0 MiB")


@pytest.mark.parametrize(
    "after",
    [
        {"requests_in_flight": 1},
        {"requests_running": 1},
        {"queue_depth": 1},
        {"worker_starts_total": 2},
        {"event_loop_tasks": 9},
        {"files": 23},
    ],
)
def test_leftovers_are_a_complaint(after):
    assert leaks(sample(), sample()) == []
    assert len(leaks(sample(), sample(**after))) == 1


def test_accounts_that_agree_give_no_complaint():
    assert accounts([FINISHED], [LINE], FIGURES) == []


@pytest.mark.parametrize(
    ("observations", "log", "figures"),
    [
        ([FINISHED], [], {("easel_blocks_total",): 0}),
        ([Observation("a", 1, "finished", 200, 1, tokens=8)], [LINE], FIGURES),
        ([Observation("a", 2, "finished", 200, 1, tokens=9)], [LINE], FIGURES),
        ([Observation("a", 1, "refused", 400)], [LINE], FIGURES),
        ([Observation("a", 1, "failed", 500)], [LINE], FIGURES),
        ([], [LINE], FIGURES),
        ([FINISHED], [LINE], {**FIGURES, ("easel_requests_total", "stop"): 2}),
        ([FINISHED], [LINE], {**FIGURES, ("easel_requests_total", "error"): 1}),
        ([FINISHED], [LINE], {**FIGURES, ("easel_completion_tokens_total",): 10}),
        ([FINISHED], [LINE], {**FIGURES, ("easel_blocks_total",): 0}),
        ([FINISHED], [LINE], {**FIGURES, ("easel_blocks_total",): 4}),
        ([FINISHED], [LINE, {"logger": "app", "level": "error", "message": "x"}], FIGURES),
        ([FINISHED, Observation("b", 1, "left", 200, events=2)], [LINE], FIGURES),
    ],
)
def test_accounts_that_disagree_are_a_complaint(observations, log, figures):
    assert len(accounts(observations, log, figures)) == 1
