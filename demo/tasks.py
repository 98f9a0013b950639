"""The demo model's tasks: random conversations whose right answers are known.

`TASKS` lists them by name. `held_out(task, …)` yields examples that training never sees. A hash of
the messages decides once and for all whether an example is held out. Messages that are added to
them, such as a system prompt or earlier turns, do not change that. Another wording of the same fact
or sum may be used for training.
"""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from demo import decision_tasks, hard_tasks
from demo.decision_tasks import DECISION_TASKS
from demo.easy_tasks import EASY_TASKS, NO_TOOL, other_tool
from demo.examples import Example, Task, assistant
from demo.hard_tasks import HARD_TASKS

THINKING_SHARE = 0.08

GROUPS = {"easy": EASY_TASKS, "hard": HARD_TASKS, "decisions": DECISION_TASKS}
TASKS: dict[str, Task] = {name: task for group in GROUPS.values() for name, task in group.items()}
LESSON_TASKS = hard_tasks.LESSON_TASKS | decision_tasks.LESSON_TASKS  # of the training only

_SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "Be brief.",
    "You are a friendly assistant. Answer in one sentence.",
    "You talk like a pirate.",
    "Answer truthfully.",
]


def training_example(
    random: Random, weights: dict[str, float] | None = None
) -> tuple[str, Example]:
    """Returns a task's name and a random example of it that is not held out, with additions.

    `weights` are the relative probabilities of some tasks, also of those for lessons. Without them
    all tasks are equally probable.
    """
    chances = weights or dict.fromkeys(TASKS, 1.0)
    makers = TASKS | LESSON_TASKS
    while True:
        (name,) = random.choices(list(chances), list(chances.values()))
        example = makers[name](random)
        if not example.is_held_out:
            return name, _with_additions(example, random)


def held_out(task: str, count: int, seed: int = 0) -> Iterator[Example]:
    """Yield `count` held-out examples of a task with random additions, the same for each seed."""
    random = Random(f"{task}/{seed}")
    for example in _held_out(task, count, random):
        yield _with_additions(example, random)


def held_out_bare(task: str, count: int, seed: int = 0) -> Iterator[Example]:
    """Yield `count` held-out examples of a task without additions, the same for each seed."""
    yield from _held_out(task, count, Random(f"{task}/{seed}"))


def _held_out(task: str, count: int, random: Random) -> Iterator[Example]:
    while count:
        example = TASKS[task](random)
        if example.is_held_out:
            yield example
            count -= 1


def _with_additions(example: Example, random: Random) -> Example:
    """Returns the example as it may appear in a longer conversation.

    It often gets a system prompt, sometimes earlier turns or an unrelated tool, and rarely thinking
    is switched on.
    """
    messages = list(example.messages)
    if random.random() < 0.1 and example.tools is None:
        other = TASKS[random.choice(["greet", "capital", "add", "echo", "default"])](random)
        messages = [*other.messages, assistant(other.answer), *messages]
    if random.random() < 0.25:
        messages = [{"role": "system", "content": random.choice(_SYSTEM_PROMPTS)}, *messages]
    tools = example.tools
    if tools is None and random.random() < 0.05 and example.answer != NO_TOOL:
        tools = [other_tool(random)]
    # Labels are read behind a closed thought.
    thinking = example.thinking or (not example.decision and random.random() < THINKING_SHARE)
    return replace(example, messages=messages, tools=tools, thinking=thinking)
