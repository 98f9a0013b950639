"""Examples: conversations with a right answer, and how a question is worded.

`demo/tasks.py` lists the tasks that make them.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Message = dict[str, Any]

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Question:
    """A question, its right label, and what the labels of a choice or a score stand for.

    Without choices and levels the labels are yes and no. Levels without names are numbers.
    """

    text: str
    label: str
    choices: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """Questions behind a state, which may be empty, each of which a single label answers."""

    state: str
    questions: list[Question]


@dataclass(frozen=True)
class Example:
    """A conversation in OpenAI's format and the raw text that the model should answer.

    `answer` contains Gemma's markers but not the final token, which ends a tool call if
    `ends_in_call` is true, and otherwise the turn. With `thinking` the answer follows `thought`.

    `accepts` is set if other answers are right as well: it says whether a text is one of them.
    `draft` is a text from which an edit starts: about as long as the answer and mostly equal to it.
    `decision` is set if the answer consists of lines `1: A`, whose last tokens are its labels.
    `slots_behind` is set if the tokens behind this one, as labels behind a colon, are all that the
    question asks for. The rest of the answer is known without it.
    """

    messages: list[Message]
    answer: str
    thought: str
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False
    ends_in_call: bool = False
    accepts: Callable[[str], bool] | None = None
    draft: str | None = None
    decision: Decision | None = None
    slots_behind: str | None = None

    @property
    def is_held_out(self) -> bool:
        """True if training must not use it, as decided by a hash of all its messages' contents."""
        said = json.dumps([message["content"] for message in self.messages])
        return hashlib.sha256(said.encode()).digest()[0] < 256 * HELD_OUT_SHARE


Task = Callable[[Random], Example]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def ask(random: Random, thought: str, wordings: str, answer: str, **fields: Any) -> Example:
    """Returns an example that asks in one of the wordings, which are separated by |.

    It may lack an initial capital or the final punctuation mark.
    """
    question = random.choice(wordings.split("|")).format(**fields)
    return Example([user(typed(question, random))], answer, thought)


def typed(text: str, random: Random) -> str:
    """Returns the text as somebody in a hurry may type it."""
    chance = random.random()
    if chance < 0.15:
        text = text[0].lower() + text[1:]
    if chance > 0.8 and text[-1] in ".?!":
        text = text[:-1]
    return text
