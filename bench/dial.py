"""The quality dial: the denoising steps that each quality saves, and the accuracy that it costs.

All qualities answer the same questions with the same seeds, so they differ by their stopping rules
only. docs/quality.md contains the table as this module writes it.
"""

from collections.abc import Iterator
from typing import get_args

from bench import page
from bench.compare import Row, Show, silent
from bench.quality import examined, groups, refusals_reported
from bench.questions import Line
from demo.evaluate import Score, answered, total
from engine.config import EngineConfig, Quality
from engine.loading import with_profile
from engine.messages import Sampling

EXACT, *OTHERS = get_args(Quality)
COLUMNS = ["questions", "exact_match", "steps_a_block"]
COLUMNS += [f"{quality}_{figure}" for quality in OTHERS for figure in ("saved", "lost")]


def rows(
    model: str,
    lines: list[Line] | None,
    prompts: int | None,
    max_tokens: int,
    show: Show = silent,
) -> Iterator[Row]:
    """Yield a row for each task, for each group of the demo model's tasks, and for all tasks.

    `lines` are a file's questions. Without them, the demo model's held-out ones are asked. The
    share of steps that a quality saves and the share of answers that it loses are compared with
    "exact". Raises typer.BadParameter if the model can't be loaded or a prompt is too long for it.
    """
    show("loading the model")
    with refusals_reported():
        config = with_profile(EngineConfig(model=model))[0]
    worker, asked, _ = examined(config, lines, prompts, max_tokens)
    scores: list[dict[str, Score]] = []  # of each task, by quality
    for task, questions in asked.items():
        by_quality = {}
        for quality in get_args(Quality):
            show(f"{quality}, {task}")
            by_quality[quality] = answered(task, questions, worker, Sampling(0, quality=quality))
        scores.append(by_quality)
        yield _row(by_quality)
    for name, tasks in groups(asked, lines).items():
        some = [each for each in scores if each[EXACT].task in tasks]
        yield _row({q: total([each[q] for each in some], name) for q in get_args(Quality)})


def _row(scores: dict[str, Score]) -> Row:
    exact = scores[EXACT]
    row: Row = {
        "case": exact.task,
        "questions": exact.prompts,
        "exact_match": exact.accuracy,
        "steps_a_block": exact.steps_per_block,
    }
    for quality in OTHERS:
        score = scores[quality]
        row[f"{quality}_saved"] = 1 - score.steps_per_block / exact.steps_per_block
        row[f"{quality}_lost"] = exact.accuracy - score.accuracy
    return row


def table(model: str, rows: list[Row]) -> str:
    """Returns the rows as a Markdown table, with a sentence about what was measured."""
    heads = ["task", "questions", "right", "steps a block"]
    heads += [f"{quality}: {figure}" for quality in OTHERS for figure in ("steps saved", "lost")]
    lines = []
    for row in rows:
        cells = [row["case"], str(row["questions"])]
        cells += [f"{row['exact_match']:.1%}", f"{row['steps_a_block']:.2f}"]
        cells += [
            f"{row[f'{quality}_{figure}']:.1%}"
            for quality in OTHERS
            for figure in ("saved", "lost")
        ]
        lines.append(cells)
    drawn = page.table(heads, lines)
    return f"Model: `{model}`. Each question has the same seed at each quality.\n\n{drawn}"
