"""What the demo model is taught when.

A small model learns a skill such as adding only after thousands of examples of it. The few that it
sees of them among forty tasks do not suffice (README.md has the trials). So each skill first has a
lesson, in which most examples are of it. The others are of what the earlier lessons taught. A
lesson ends as soon as its loss is low, or after its most steps. After the lessons all tasks come in
every batch, while the learning rate falls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demo.easy_tasks import EASY_TASKS

LESSON_SHARE = 0.6  # of the examples are of a lesson's own tasks
MIX_STEPS = 2_112  # after the lessons
# Shares of the batches on canvases no wider than their blocks need. Such canvases are quicker, but
# their width tells roughly where an answer ends, which a whole canvas does not.
_MOSTLY_NARROW, _MOSTLY_WHOLE = 0.9, 0.2
_MEAN_SHARE = 0.003  # of a new example in the running mean of a lesson's loss


@dataclass(frozen=True)
class Lesson:
    """At most so many steps about these tasks. `enough` is the loss, in nats, that ends it.

    `narrow_share` is the share of batches on canvases no wider than their blocks need.
    """

    most_steps: int
    enough: float
    tasks: tuple[str, ...]
    narrow_share: float = _MOSTLY_NARROW


_FIRST_LESSONS = (
    # It makes use of the heads that find a token again (`first_heads.py`), before others take them.
    Lesson(256, 0.05, ("words_and_letters",)),
    Lesson(1024, 0.1, tuple(EASY_TASKS)),
    # Long answers. Most of them are found in the prompt.
    Lesson(
        1536,
        0.15,
        (
            "edit",
            "distinct",
            "nested_json",
            "spell_backwards",
            "fill_in",
            "agree",
            "sort_words",
            "sort_numbers",
            "chain",
        ),
    ),
    Lesson(384, 0.05, ("named_or_not", "named_letters", "letters_of_words", "word_choice")),
    Lesson(256, 0.05, ("capital_choice",)),
    Lesson(192, 0.05, ("capital_fact",)),
    Lesson(160, 0.05, ("long_choice",)),
    Lesson(224, 0.05, ("state_fact",)),
    Lesson(768, 0.05, ("sum",)),
)
LESSONS = (
    *_FIRST_LESSONS,
    # All of that together, and then again what it did not suffice for, a skill at a time.
    Lesson(736, 0.05, tuple(task for lesson in _FIRST_LESSONS for task in lesson.tasks)),
    Lesson(192, 0.05, ("count",)),
    Lesson(320, 0.1, ("edit",)),
    Lesson(160, 0.1, ("nested_json",)),
    Lesson(160, 0.05, ("distinct",)),
    Lesson(96, 0.1, ("agree",)),
    Lesson(160, 0.05, ("spell_backwards",)),
    Lesson(256, 0.05, ("sort_words",)),
    Lesson(192, 0.05, ("sort_numbers",)),
    Lesson(192, 0.05, ("chain",)),
    Lesson(128, 0.05, ("fill_in",)),
    Lesson(320, 0.05, ("sum",)),
    Lesson(192, 0.05, ("sum_fact",)),
    Lesson(448, 0.05, ("small_sums",)),
    Lesson(256, 0.05, ("count",)),
    Lesson(96, 0.05, ("add", "chain")),
    Lesson(96, 0.05, ("sum_fact",)),
    Lesson(160, 0.05, ("order_fact",)),
    Lesson(256, 0.05, ("number_facts",)),
    Lesson(160, 0.05, ("largest_choice",)),
    Lesson(224, 0.05, ("single_score",)),
    Lesson(320, 0.05, ("sudoku_4x4",)),
    Lesson(160, 0.05, ("conditions",)),
    Lesson(96, 0.05, ("single_score",)),
    Lesson(384, 0.03, ("predicate", "choose", "score", "mixed")),
    Lesson(192, 0.03, ("count",), _MOSTLY_WHOLE),
    Lesson(128, 0.03, ("chain", "add"), _MOSTLY_WHOLE),
    Lesson(128, 0.03, ("sort", "sort_numbers", "sort_words"), _MOSTLY_WHOLE),
    Lesson(96, 0.03, ("sudoku_4x4",), _MOSTLY_WHOLE),
)

# After the lessons. Computed answers need more examples than copied ones and those that are known.
TASK_WEIGHTS = {
    "greet": 0.3,
    "help": 0.4,
    "count": 1.8,
    "series": 0.4,
    "echo": 0.5,
    "repeat": 0.5,
    "reverse": 0.7,
    "add": 1.5,
    "capital": 0.7,
    "sort": 1.0,
    "json": 0.5,
    "weather_call": 0.4,
    "weather_result": 0.4,
    "weather_refused": 0.1,
    "remember_name": 0.3,
    "remember_colour": 0.3,
    "default": 0.4,
    "sudoku_4x4": 1.5,
    "sum": 1.0,
    "chain": 2.0,
    "sort_numbers": 1.2,
    "sort_words": 1.2,
    "distinct": 1.2,
    "spell_backwards": 0.8,
    "agree": 0.8,
    "nested_json": 1.0,
    "edit": 1.4,
    "fill_in": 0.8,
    "predicate": 2.0,
    "choose": 2.5,
    "score": 1.4,
    "mixed": 1.0,
}


class Curriculum:
    """Where a training stands: in which lesson, or behind all of them."""

    def __init__(self, lessons: Sequence[Lesson] = LESSONS, mix_steps: int = MIX_STEPS) -> None:
        self._lessons, self._mix_steps = lessons, mix_steps
        self._lesson = 0
        self._steps = 0  # of this lesson, or behind the lessons
        self._loss: float | None = None  # the running mean of this lesson's

    @property
    def state(self) -> dict[str, Any]:
        """Where it stands, which `load` takes up again."""
        return {"lesson": self._lesson, "steps": self._steps, "loss": self._loss}

    def load(self, state: dict[str, Any]) -> None:
        self._lesson, self._steps, self._loss = state["lesson"], state["steps"], state["loss"]

    @property
    def teaches(self) -> bool:
        """True while there are lessons."""
        return self._lesson < len(self._lessons)

    @property
    def remaining(self) -> float:
        """The share of the steps behind the lessons that are still to come, from 1 to 0."""
        return 1.0 if self.teaches else max(0.0, 1 - self._steps / self._mix_steps)

    @property
    def narrow_share(self) -> float:
        """The share of batches on canvases no wider than their blocks need."""
        return self._lessons[self._lesson].narrow_share if self.teaches else _MOSTLY_WHOLE

    def weights(self) -> dict[str, float]:
        """Returns the relative probability of each task."""
        if not self.teaches:
            return TASK_WEIGHTS
        own = self._lessons[self._lesson].tasks
        taught = {task: None for lesson in self._lessons[: self._lesson] for task in lesson.tasks}
        others = [task for task in taught if task not in own]  # it may teach one of them again
        share = LESSON_SHARE if others else 1.0
        return _weights(own, share) | _weights(others, 1 - share)

    def add(self, tasks: Sequence[str], losses: Sequence[float]) -> None:
        """Count a step with the loss, in nats, of each of its examples."""
        self._steps += 1
        if self.teaches:
            for task, loss in zip(tasks, losses, strict=True):
                if task in self._lessons[self._lesson].tasks:
                    before = loss if self._loss is None else self._loss
                    self._loss = before + _MEAN_SHARE * (loss - before)

    def advance(self) -> None:
        """Go on to the next lesson, or to all tasks, if this one has done its part."""
        if not self.teaches:
            return
        lesson = self._lessons[self._lesson]
        learned = self._loss is not None and self._loss < lesson.enough
        if learned or self._steps >= lesson.most_steps:
            self._lesson, self._steps, self._loss = self._lesson + 1, 0, None

    def __str__(self) -> str:
        if not self.teaches:
            return f"all tasks, {self._steps} of {self._mix_steps} steps"
        lesson = self._lessons[self._lesson]
        name = lesson.tasks[0] if len(lesson.tasks) == 1 else f"{lesson.tasks[0]} and others"
        loss = "" if self._loss is None else f", loss {self._loss:.3f} of {lesson.enough}"
        return (
            f"lesson {self._lesson + 1} of {len(self._lessons)} ({name}), "
            f"{self._steps} of at most {lesson.most_steps} steps{loss}"
        )


def _weights(tasks: Sequence[str], share: float) -> dict[str, float]:
    """Returns the tasks' relative probabilities, whose sum is `share`."""
    weights = {task: TASK_WEIGHTS.get(task, 1.0) for task in tasks}
    return {task: share * weight / sum(weights.values()) for task, weight in weights.items()}
