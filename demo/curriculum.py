"""What the demo model is taught in which of the training's steps.

A small model learns a skill such as adding or finding a label only after thousands of examples of
it. The few that it sees of them among forty tasks do not suffice (README.md has the trials). So
each skill first has a lesson, a stretch of steps in which most examples are of it. The others are
of what the earlier lessons taught. After the lessons all tasks come in every batch, while the
learning rate falls.
"""

from collections.abc import Sequence

from demo.easy_tasks import EASY_TASKS

LESSON_SHARE = 0.6  # of the examples are of a lesson's own tasks

# Steps, and the tasks that the lesson is about.
LESSONS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (1792, tuple(EASY_TASKS)),  # their short prompts teach the model to copy
    (384, ("word_choice",)),
    (352, ("capital_choice",)),
    (256, ("capital_fact",)),
    (256, ("long_choice",)),
    (320, ("state_fact",)),
    (448, ("sort_words",)),
    (384, ("sort_numbers",)),
    (448, ("distinct",)),
    (448, ("agree",)),
    (224, ("spell_backwards",)),
    (320, ("fill_in",)),
    (448, ("nested_json",)),
    (640, ("edit",)),
    (1024, ("sum",)),
    (704, ("difference",)),
    (640, ("chain",)),
    (512, ("sum_fact",)),
    (416, ("order_fact",)),
    (416, ("largest_choice",)),
    (512, ("single_score",)),
    (640, ("sudoku_4x4",)),
    (640, ("sudoku_6x6",)),
    (1024, ("predicate", "choose", "score", "mixed")),
)
LESSON_STEPS = sum(steps for steps, _ in LESSONS)

# After the lessons. Computed answers need more examples than copied ones and those that are known.
TASK_WEIGHTS = {
    "greet": 0.3,
    "help": 0.2,
    "count": 0.8,
    "series": 0.2,
    "echo": 0.5,
    "repeat": 0.5,
    "reverse": 0.5,
    "add": 1.0,
    "capital": 0.5,
    "sort": 0.8,
    "json": 0.5,
    "weather_call": 0.4,
    "weather_result": 0.4,
    "weather_refused": 0.1,
    "remember_name": 0.3,
    "remember_colour": 0.3,
    "default": 0.4,
    "sudoku_4x4": 1.5,
    "sudoku_6x6": 2.0,
    "sum": 3.0,
    "difference": 2.2,
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


def task_weights(step: int) -> dict[str, float]:
    """Returns the relative probability of each task in this step."""
    earlier: list[str] = []
    for steps, tasks in LESSONS:
        if step < steps:
            share = LESSON_SHARE if earlier else 1.0
            return _weights(tasks, share) | _weights(earlier, 1 - share)
        step -= steps
        earlier += tasks
    return TASK_WEIGHTS


def _weights(tasks: Sequence[str], share: float) -> dict[str, float]:
    """Returns the tasks' relative probabilities, whose sum is `share`."""
    weights = {task: TASK_WEIGHTS.get(task, 1.0) for task in tasks}
    return {task: share * weight / sum(weights.values()) for task, weight in weights.items()}
