"""Accuracy against denoising steps: the curve of the released sampler, and that of other settings.

A curve's points are limits of the steps a block may have. The last one is the checkpoint's own
limit. The area under the curve is AUP (see `bench/curve.py`), by task and as their mean.

Every question has a seed of its own, so a curve is the same each time, and two curves differ by
their settings only.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import typer
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bench import page
from bench.compare import Row, Show, of_case, silent
from bench.curve import Point, area
from bench.panels import panels
from bench.questions import Line, demo_questions, file_questions
from demo.evaluate import Question, Score, answered, total
from demo.tasks import GROUPS
from engine.config import EngineConfig
from engine.denoise.denoiser import Denoiser
from engine.loading import build_denoiser, with_profile
from engine.messages import Sampling
from engine.obstacles import out_of_range
from engine.worker import REFUSALS, Worker

LIMITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
COLUMNS = ["questions", "exact_match", "in_one_step", "steps_a_block", "tokens_a_step", "aup"]

# The sampler's numbers that a setting can replace.
_SAMPLER = {
    "temperature": float,
    "entropy_bound": float,
    "confidence_threshold": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
}


@dataclass(frozen=True)
class Side:
    """A setting: its name, the worker's options with the device's profile, and the sampler's.

    With `predict`, each request has its question's prediction.
    """

    name: str
    config: EngineConfig
    sampling: Sampling
    predict: bool = False


def predicted(compared: list[Side]) -> list[Side]:
    """Returns the sides, and behind them the last one with predictions."""
    last = compared[-1]
    return [*compared, replace(last, name=f"{last.name}, predicted", predict=True)]


def sides(model: str, settings: list[str]) -> list[Side]:
    """Returns the released sampler's side and, if there are settings `NAME=VALUE`, theirs.

    Raises typer.BadParameter, which names the setting that is wrong.
    """
    options: dict[str, str] = {}
    sampler: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {setting}: must be NAME=VALUE")
        if name in _SAMPLER:
            try:
                sampler[name] = _SAMPLER[name](value)
            except ValueError as error:
                raise typer.BadParameter(f"--set {setting}: {value!r} is no number") from error
        else:
            options[name] = value
    try:
        changed = EngineConfig.model_validate({"model": model, **options})
    except ValidationError as error:
        fault = error.errors()[0]
        known = ", ".join([*_SAMPLER, *EngineConfig.model_fields])
        name = str(fault["loc"][0]) if fault["loc"] else ""
        raise typer.BadParameter(f"--set {name}: {fault['msg']}; known: {known}") from error
    sampling = Sampling(seed=0, **sampler)
    if invalid := out_of_range(sampling):
        name = invalid[0]
        raise typer.BadParameter(f"--set {name}: {sampler[name]} is out of range")
    with refusals_reported():
        released = Side("released", with_profile(EngineConfig(model=model))[0], Sampling(seed=0))
        if not settings:
            return [released]
        return [released, Side(", ".join(settings), with_profile(changed)[0], sampling)]


@contextmanager
def refusals_reported() -> Iterator[None]:
    """Turn a model or a device that the worker refuses into a typer.BadParameter."""
    try:
        yield
    except REFUSALS as error:
        raise typer.BadParameter(str(error)) from error


def rows(
    compared: list[Side],
    lines: list[Line] | None,
    prompts: int | None,
    max_tokens: int,
    show: Show = silent,
) -> Iterator[Row]:
    """Yield a row for each task and side, and at the end one for all tasks of a side.

    `lines` are a file's questions. Without them, the demo model's held-out ones are asked, and each
    group of its tasks has a row too. If a side has predictions, only the questions that have one
    are asked. Raises typer.BadParameter if a model can't be loaded, a prompt is too long for it, or
    no question is left.
    """
    predict = any(side.predict for side in compared)
    results = [
        _scores(side, lines, prompts, max_tokens, of_case(show, side.name), predict=predict)
        for side in compared
    ]
    tasks = list(results[0])
    asked = {task: results[0][task][0][1].prompts for task in tasks}
    totals = groups(tasks, lines)
    curves = [_curves(scores, totals) for scores in results]
    areas: dict[tuple[str, str], float] = {}
    for task in [*tasks, *totals]:
        best = max(point.accuracy for curve in curves for point in curve[task])
        for side, curve in zip(compared, curves, strict=True):
            if task in totals:
                aup = fmean(areas[side.name, member] for member in totals[task])
            else:
                aup = areas[side.name, task] = area(curve[task], best)
            case = task if len(compared) == 1 else f"{task}, {side.name}"
            yield {
                "case": case,
                "task": task,
                "setting": side.name,
                "questions": sum(asked[member] for member in totals.get(task, [task])),
                **_summary(curve[task]),
                "aup": aup,
                "curve": [asdict(point) for point in curve[task]],
            }


def _summary(curve: list[Point]) -> Row:
    first, last = curve[0], curve[-1]
    return {
        "exact_match": last.accuracy,
        "in_one_step": first.accuracy,
        "steps_a_block": last.steps_a_block,
        "tokens_a_step": last.tokens_a_step,
    }


def groups(tasks: Collection[str], lines: list[Line] | None) -> dict[str, list[str]]:
    """Returns the tasks of each group of the demo model's that was asked, and of "all"."""
    known = {} if lines is not None else GROUPS
    whole = {name: list(group) for name, group in known.items() if set(group) <= set(tasks)}
    return {**whole, "all": list(tasks)}


def _scores(
    side: Side,
    lines: list[Line] | None,
    prompts: int | None,
    max_tokens: int,
    show: Show,
    *,
    predict: bool,
) -> dict[str, list[tuple[int, Score]]]:
    """Returns a side's score of each task with each limit of the steps.

    With `predict`, only the questions that have a prediction are asked.
    """
    show("loading the model")
    worker, asked, most = examined(side.config, lines, prompts, max_tokens)
    if predict:
        with_prediction = {task: [q for q in each if q.prediction] for task, each in asked.items()}
        asked = {task: each for task, each in with_prediction.items() if each}
        if not asked:
            raise typer.BadParameter("--predict: no question has a prediction")
    scores: dict[str, list[tuple[int, Score]]] = defaultdict(list)
    for limit in [*(limit for limit in LIMITS if limit < most), most]:
        sampling = msgspec.structs.replace(side.sampling, max_denoising_steps=limit)
        for task, each in asked.items():
            show(f"at most {limit} steps, {task}")
            score = answered(task, each, worker, sampling, predict=side.predict)
            scores[task].append((limit, score))
    return scores


def _curves(
    scores: dict[str, list[tuple[int, Score]]], totals: dict[str, list[str]]
) -> dict[str, list[Point]]:
    """Returns the curve of each task, and of each group of tasks together."""
    curves = {task: [_point(*each) for each in some] for task, some in scores.items()}
    for name, members in totals.items():
        by_limit = zip(*(scores[member] for member in members), strict=True)
        curves[name] = [
            _point(some[0][0], total([score for _, score in some], name)) for some in by_limit
        ]
    return curves


def examined(
    config: EngineConfig, lines: list[Line] | None, prompts: int | None, max_tokens: int
) -> tuple[Worker, dict[str, list[Question]], int]:
    """Returns a worker with its model, each task's questions, and the most steps of a block.

    The arguments are those of `rows`. Raises typer.BadParameter if the model can't be loaded or a
    prompt is too long for it.
    """
    with refusals_reported():
        denoiser = build_denoiser(config)
    tokenizer = AutoTokenizer.from_pretrained(
        config.model_path, revision=config.revision or "main", trust_remote_code=False
    )
    asked = dict(_asked(tokenizer, denoiser, lines, prompts, max_tokens))
    return Worker(denoiser, config), asked, denoiser.sampler.max_denoising_steps


def _asked(
    tokenizer: PreTrainedTokenizerBase,
    denoiser: Denoiser,
    lines: list[Line] | None,
    prompts: int | None,
    max_tokens: int,
) -> Iterator[tuple[str, list[Question]]]:
    if lines is None:
        return demo_questions(tokenizer, 20 if prompts is None else prompts)
    return file_questions(
        lines,
        tokenizer,
        prompts=prompts,
        max_tokens=max_tokens,
        context_length=denoiser.context_length,
        ends=denoiser.sampler.end_tokens,
    )


def _point(limit: int, score: Score) -> Point:
    return Point(limit, score.accuracy, score.steps_per_block, score.tokens_per_step)


def table(model: str, rows: list[Row]) -> str:
    """Returns the rows as a Markdown table, with a sentence about what was measured."""
    heads = [
        "task",
        "questions",
        "exact match",
        "in one step",
        "steps a block",
        "tokens a step",
        "AUP",
    ]
    lines = [
        [
            row["case"],
            str(row["questions"]),
            f"{row['exact_match']:.1%}",
            f"{row['in_one_step']:.1%}",
            f"{row['steps_a_block']:.2f}",
            f"{row['tokens_a_step']:.1f}",
            f"{row['aup']:,.0f}",
        ]
        for row in rows
    ]
    return f"Model: `{model}`.\n\n{page.table(heads, lines)}"


def draw(title: str, rows: list[Row], file: Path) -> None:
    """Draw the curves of the rows, accuracy against steps a block, one panel for each task."""
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    labels = {"x_label": "steps a block", "y_label": "exact match, %"}
    with panels(list(by_task), file, title=title, **labels) as axes:
        for task, curves in by_task.items():
            for row in curves:
                steps = [point["steps_a_block"] for point in row["curve"]]
                accuracies = [100 * point["accuracy"] for point in row["curve"]]
                axes[task].plot(steps, accuracies, marker=".", label=row["setting"])
            axes[task].set_ylim(-4, 104)
