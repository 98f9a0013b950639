"""How often decisions are right, and how well their probabilities are calibrated.

Questions whose answers are known go through `POST /v1/systemone` of a server: together and each on
a canvas of its own, read in one denoising step and in two. A probability is calibrated if answers
that have 0.8 are right in four of five cases. The expected calibration error (ECE; Guo and others,
"On Calibration of Modern Neural Networks", 2017) sorts the answers into ten bins by the
probability of the likeliest option. It is the mean distance in a bin between this probability and
the share of right answers, weighted by the bins' sizes.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import typer
from pydantic import model_validator

from app.dialects.systemone.schema import (
    AnyQuestion,
    ChoiceQuestion,
    NoulQuestion,
    ScoreQuestion,
    SystemOneRequest,
)
from bench import page
from bench.compare import Row, Show, silent
from bench.json_lines import Task, json_lines
from bench.panels import panels
from demo.decision_tasks import DECISION_TASKS
from demo.examples import Question
from demo.tasks import held_out_bare

COLUMNS = ["questions", "right", "probability", "ece", "label_mass"]
BINS = 10
STEPS = (1, 2)
_KINDS = {"noul": "predicate", "choice": "choice", "score": "score"}


@dataclass(frozen=True)
class Result:
    """A question's answer: the likeliest option's probability, and whether it is right."""

    probability: float
    right: bool
    label_mass: float


class Line(SystemOneRequest):
    """One line of a file of decisions: a body of `POST /v1/systemone`, and the right answers.

    An answer is true or false for a `noul`, the name of a `choice`, or the number of a `score`'s
    level, from 0. `task` groups lines. Without it, questions are grouped by their kind.
    """

    task: Task = ""
    answers: dict[str, bool | int | str]

    @model_validator(mode="after")
    def _answered(self) -> "Line":
        for id, question in self.questions.items():
            if id not in self.answers:
                raise ValueError(f"answers: {id!r} is missing")
            if self.answers[id] not in _options(question) or (
                isinstance(question, NoulQuestion) != isinstance(self.answers[id], bool)
            ):
                allowed = ", ".join(map(repr, _options(question)))
                raise ValueError(f"answers.{id}: {self.answers[id]!r} is none of {allowed}")
        return self

    @property
    def body(self) -> dict[str, Any]:
        """Returns the request's body."""
        return self.model_dump(exclude_unset=True, exclude={"task", "answers"})

    def group(self, id: str) -> str:
        """Returns the name under which a question's result is counted."""
        return self.task or _KINDS[self.questions[id].type]


def _options(question: AnyQuestion) -> list[bool | int | str]:
    """Returns what a right answer may be, in the order of the probabilities."""
    match question:
        case NoulQuestion():
            return [True, False]
        case ChoiceQuestion(criteria=criteria):
            return list(criteria)
        case ScoreQuestion(criteria=levels):
            return list(range(len(levels)))


def read_file(file: Path) -> list[Line]:
    """Returns the lines of a file of decisions.

    Raises typer.BadParameter, which names the line that is wrong.
    """
    return json_lines(file, Line)


def demo_lines(prompts: int) -> Iterator[Line]:
    """Yield the first `prompts` held-out decisions of each of the demo model's tasks."""
    for task in DECISION_TASKS:
        for example in held_out_bare(task, prompts):
            assert example.decision is not None
            asked = {str(i): each for i, each in enumerate(example.decision.questions, 1)}
            yield Line.model_validate(
                {
                    "state": example.decision.state,
                    "questions": {id: _body(question) for id, question in asked.items()},
                    "answers": {id: _answer(question) for id, question in asked.items()},
                }
            )


def _body(question: Question) -> dict[str, Any]:
    if question.choices:
        criteria = dict.fromkeys(question.choices)
        return {"type": "choice", "instructions": question.text, "criteria": criteria}
    if question.levels:
        levels = list(question.levels)
        return {"type": "score", "instructions": question.text, "criteria": levels}
    return {"type": "noul", "instructions": question.text}


def _answer(question: Question) -> bool | int | str:
    if question.choices:
        return question.choices[ord(question.label) - ord("A")]
    return int(question.label) if question.levels else question.label == "yes"


def rows(server: httpx.Client, lines: Sequence[Line], show: Show = silent) -> Iterator[Row]:
    """Yield a row for each way of reading and group of questions, and one for all of them.

    Raises typer.BadParameter if the server can't be reached or refuses a line.
    """
    for joint, steps in product((True, False), STEPS):
        way = f"{'joint' if joint else 'alone'}, {steps} step{'s' * (steps > 1)}"
        groups: dict[str, list[Result]] = defaultdict(list)
        for number, line in enumerate(lines, 1):
            show(f"{way}: {number} of {len(lines)}")
            for id, result in _results(server, line, joint=joint, steps=steps).items():
                groups[line.group(id)].append(result)
        everything = [result for results in groups.values() for result in results]
        for group, results in [*groups.items(), ("all", everything)]:
            yield {"case": f"{group}, {way}", "group": group, "way": way, **summary(results)}


def _results(server: httpx.Client, line: Line, *, joint: bool, steps: int) -> dict[str, Result]:
    """Returns the result of each question of a line."""
    body = line.body | {"joint": joint, "steps": steps}
    try:
        response = server.post("/v1/systemone", json=body)
    except httpx.HTTPError as error:
        raise typer.BadParameter(f"{server.base_url} can't be reached: {error}") from error
    if response.status_code != 200:
        raise typer.BadParameter(
            f"{server.base_url} answers {response.status_code}: {response.text}"
        )
    made = response.json()
    results = {}
    for id, question in line.questions.items():
        answer, options = made["answers"][id], _options(question)
        match question:
            case NoulQuestion():
                shares = [answer["noul"], 1 - answer["noul"]]
            case ChoiceQuestion():
                shares = [answer["probabilities"][name] for name in options]
            case ScoreQuestion():
                shares = [answer["probabilities"][str(level)] for level in options]
        best = max(range(len(shares)), key=shares.__getitem__)
        mass = made["diagnostics"][id]["label_mass"]
        results[id] = Result(shares[best], options[best] == line.answers[id], mass)
    return results


def summary(results: Sequence[Result]) -> Row:
    """Returns the figures of the results, with their bins from the least probability on.

    `probability` is the mean of the likeliest options', which `right` equals if they are
    calibrated.
    """
    sorted_in: dict[int, list[Result]] = defaultdict(list)
    for result in results:
        sorted_in[min(BINS - 1, int(BINS * result.probability))].append(result)
    bins = [
        {
            "from": number / BINS,
            "questions": len(sorted_in[number]),
            "right": _mean([each.right for each in sorted_in[number]]),
            "probability": _mean([each.probability for each in sorted_in[number]]),
        }
        for number in sorted(sorted_in)
    ]
    errors = [abs(each["right"] - each["probability"]) * each["questions"] for each in bins]
    return {
        "questions": len(results),
        "right": _mean([each.right for each in results]),
        "probability": _mean([each.probability for each in results]),
        "ece": sum(errors) / len(results),
        "label_mass": _mean([each.label_mass for each in results]),
        "bins": bins,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(asked: str, rows: list[Row]) -> str:
    """Returns the rows as a Markdown table, with the model or the server that was asked."""
    heads = ["questions read", "questions", "right", "probability", "ECE", "label mass"]
    lines = [
        [row["case"], str(row["questions"]), f"{row['right']:.1%}"]
        + [f"{row[name]:.3f}" for name in ("probability", "ece", "label_mass")]
        for row in rows
    ]
    return f"Asked: `{asked}`.\n\n{page.table(heads, lines)}"


def draw(title: str, rows: list[Row], file: Path) -> None:
    """Draw the share of right answers against their probability, one panel for each group."""
    by_group: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_group[row["group"]].append(row)
    labels = {"x_label": "probability", "y_label": "share of right answers"}
    with panels(list(by_group), file, title=title, **labels) as axes:
        for group, ways in by_group.items():
            axes[group].plot([0, 1], [0, 1], color="0.8", linewidth=1)
            for row in ways:
                probabilities = [each["probability"] for each in row["bins"]]
                shares = [each["right"] for each in row["bins"]]
                axes[group].plot(probabilities, shares, marker=".", label=row["way"])
