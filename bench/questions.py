"""The questions of a measurement of quality: the demo model's held-out ones, or those of a file.

A file has one JSON object a line: the `prompt` of a user or the `messages` of a conversation, and
either the exact `answer` or a `pattern`, a regular expression that is found in every right answer.
`task` may name a group of lines. `prediction` is a text that is about what the answer should be.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedTokenizerBase

from bench.json_lines import Task, json_lines
from demo import evaluate
from demo.evaluate import Question, without_thought
from demo.tasks import TASKS
from engine.messages import Prediction


class Line(BaseModel):
    """One line of a file of questions."""

    model_config = ConfigDict(strict=True, extra="forbid")

    task: Task = ""
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    answer: str | None = None
    pattern: str | None = None
    prediction: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _complete(self) -> "Line":
        for one, other in (("prompt", "messages"), ("answer", "pattern")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ValueError(f"needs either {one} or {other}, and not both")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern is no regular expression: {error}") from error
        return self

    def is_right(self, text: str) -> bool:
        """Returns whether the text of an answer is right. Space around it does not count."""
        text = without_thought(text).strip()
        if self.pattern is not None:
            return re.search(self.pattern, text) is not None
        assert self.answer is not None, "a line has an answer or a pattern"
        return text == self.answer.strip()


def read_file(file: Path) -> list[Line]:
    """Returns the lines of a file of questions.

    Raises typer.BadParameter, which names the line that is wrong.
    """
    lines = json_lines(file, Line)
    lines = [line.model_copy(update={"task": line.task or file.stem}) for line in lines]
    if any(line.task == "all" for line in lines):
        raise typer.BadParameter(f"{file}: task: 'all' means all tasks")
    return lines


def demo_questions(
    tokenizer: PreTrainedTokenizerBase, prompts: int
) -> Iterator[tuple[str, list[Question]]]:
    """Yield each of the demo model's tasks with `prompts` held-out questions."""
    for task in TASKS:
        yield task, list(evaluate.questions(task, tokenizer, prompts))


def file_questions(
    lines: list[Line],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: int | None,
    max_tokens: int,
    context_length: int,
    ends: frozenset[int],
) -> Iterator[tuple[str, list[Question]]]:
    """Yield each task of the lines with its first `prompts` questions, by default all.

    An answer has room for `max_tokens`, or what the context leaves of them. `ends` are the tokens
    that end it. Raises typer.BadParameter, which names a prompt that leaves no room.
    """
    for task in dict.fromkeys(line.task for line in lines):
        asked = []
        for line in [line for line in lines if line.task == task][:prompts]:
            question = _question(line, tokenizer, max_tokens, ends)
            left = context_length - len(question.prompt)
            if left < 1:
                raise typer.BadParameter(
                    f"{task}: a prompt has {len(question.prompt)} tokens, but the context has "
                    f"{context_length}: {str(line.prompt or line.messages)[:60]!r}…"
                )
            asked.append(replace(question, room=min(max_tokens, left)))
        yield task, asked


def _question(
    line: Line, tokenizer: PreTrainedTokenizerBase, max_tokens: int, ends: frozenset[int]
) -> Question:
    messages = line.messages or [{"role": "user", "content": line.prompt}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert isinstance(prompt, str)

    def is_right(answer: list[int]) -> bool:
        if answer and answer[-1] in ends:
            answer = answer[:-1]
        text = tokenizer.decode(answer)
        assert isinstance(text, str)
        return line.is_right(text)

    prediction = None
    if line.prediction is not None:
        prediction = Prediction(tokenizer.encode(line.prediction, add_special_tokens=False))
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    return Question(tokens, max_tokens, is_right, prediction)
