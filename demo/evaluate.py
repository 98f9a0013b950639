"""Measures the demo model on held-out prompts of each task, on Easel's engine.

`python -m demo.evaluate` prints a table like that of demo/README.md. The same options give the same
answers, so the table shows the effect of any change to the sampler or the engine.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo.examples import Example
from demo.tasks import GROUPS, TASKS, held_out
from demo.tokenizer import SPECIAL_TOKENS, encode_example
from engine.config import DEMO_MODEL, EngineConfig
from engine.loading import build_denoiser
from engine.messages import Block, Failed, GenerateRequest, Prediction, Sampling
from engine.worker import Worker


@dataclass(frozen=True)
class Question:
    """A prompt's tokens, the most tokens of an answer, and which answers are right.

    `prediction` is about what the answer should be, for example the text that is to be edited.
    """

    prompt: list[int]
    room: int
    is_right: Callable[[list[int]], bool]
    prediction: Prediction | None = None


@dataclass(frozen=True)
class Score:
    """The results of the questions of one task."""

    task: str
    prompts: int
    right: int
    blocks: int
    denoising_steps: int
    tokens: int

    @property
    def accuracy(self) -> float:
        return self.right / self.prompts

    @property
    def steps_per_block(self) -> float:
        return self.denoising_steps / self.blocks

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.denoising_steps


def total(scores: list[Score], name: str = "all") -> Score:
    """Returns the results of these tasks together, under a name."""
    return Score(
        name,
        sum(s.prompts for s in scores),
        sum(s.right for s in scores),
        sum(s.blocks for s in scores),
        sum(s.denoising_steps for s in scores),
        sum(s.tokens for s in scores),
    )


def questions(
    task: str, tokenizer: PreTrainedTokenizerBase, prompts: int, *, show_mistakes: bool = False
) -> Iterator[Question]:
    """Yield the task's first `prompts` held-out prompts.

    An answer is right if it equals the expected one token for token, including the end. Where the
    task accepts other answers, one of these that ends in the same way is right too.
    """
    for example in held_out(task, prompts):
        prompt, expected = encode_example(tokenizer, example)

        def is_right(
            answer: list[int], example: Example = example, expected: list[int] = expected
        ) -> bool:
            right = answer == expected
            if not right and example.accepts and answer and answer[-1] == expected[-1]:
                text = tokenizer.decode(answer[:-1])
                assert isinstance(text, str)
                right = example.accepts(without_thought(text))
            if show_mistakes and not right:
                print(f"{task}: {tokenizer.decode(expected)!r} but {tokenizer.decode(answer)!r}")
            return right

        # The room is enough for an answer that is too long.
        yield Question(prompt, 2 * len(expected) + 64, is_right, _prediction(tokenizer, example))


def _prediction(tokenizer: PreTrainedTokenizerBase, example: Example) -> Prediction | None:
    if example.draft is None:
        return None
    tokens = tokenizer.encode(example.draft, add_special_tokens=False)
    end_of_thought = SPECIAL_TOKENS["<channel|>"]
    return Prediction(tokens, end_of_thought if example.thinking else None)


def without_thought(text: str) -> str:
    """Returns the part of an answer behind its thought."""
    return text.rpartition("<channel|>")[2]


def answered(
    task: str,
    asked: Iterable[Question],
    worker: Worker,
    sampling: Sampling,
    *,
    predict: bool = False,
) -> Score:
    """Answer the questions one after another, each with a seed of its own. Returns the score.

    With `predict`, each request has the question's prediction. Raises RuntimeError if the engine
    fails to answer one.
    """
    prompts = right = blocks = steps = tokens = 0
    for index, question in enumerate(asked):
        request = GenerateRequest(
            f"{task}-{index}",
            question.prompt,
            question.room,
            msgspec.structs.replace(sampling, seed=index),
            prediction=question.prediction if predict else None,
        )
        made = []
        for message in worker.generate(request):
            if isinstance(message, Failed):
                raise RuntimeError(f"{request.id}: {message.message}")
            if isinstance(message, Block):
                made.append(message)
        answer = [token for block in made for token in block.tokens]
        prompts += 1
        right += question.is_right(answer)
        blocks += len(made)
        steps += sum(block.denoising_steps for block in made)
        tokens += len(answer)
    return Score(task, prompts, right, blocks, steps, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEMO_MODEL, help="'demo', or the folder of a checkpoint")
    parser.add_argument(
        "--prompts", type=int, default=50, help="held-out prompts to answer for each task"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="multiplies the sampler's temperature schedule",
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--early-end", action="store_true", help="enable the engine's option early_end"
    )
    parser.add_argument("--mistakes", action="store_true", help="print every wrong answer")
    parser.add_argument("--json", type=Path, help="write the scores to this file")
    options = parser.parse_args()
    config = EngineConfig(model=options.model, device="cpu", threads=1, early_end=options.early_end)
    worker = Worker(build_denoiser(config), config)
    tokenizer = AutoTokenizer.from_pretrained(config.model_path, trust_remote_code=False)
    scores, in_one_step = [], []
    for task in track(options.tasks, description="Evaluating", transient=True):
        sampling = Sampling(0, options.temperature)
        asked = list(questions(task, tokenizer, options.prompts))
        shown = questions(task, tokenizer, options.prompts, show_mistakes=options.mistakes)
        scores.append(answered(task, shown, worker, sampling))
        one_step = msgspec.structs.replace(sampling, max_denoising_steps=1)
        in_one_step.append(answered(task, asked, worker, one_step))
    scores, in_one_step = _with_totals(scores), _with_totals(in_one_step)
    Console().print(_table(scores, in_one_step))
    if options.json:
        rows = [
            {
                "case": score.task,
                "accuracy": score.accuracy,
                "steps_per_block": score.steps_per_block,
                "blocks_per_answer": score.blocks / score.prompts,
                "accuracy_in_one_step": single.accuracy,
            }
            for score, single in zip(scores, in_one_step, strict=True)
        ]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _with_totals(scores: list[Score]) -> list[Score]:
    """Returns the scores, and behind them those of each group of tasks and of all."""
    totals = []
    for name, group in GROUPS.items():
        some = [score for score in scores if score.task in group]
        if some:
            totals.append(total(some, name))
    return [*scores, *totals, total(scores)]


def _table(scores: list[Score], in_one_step: list[Score]) -> Table:
    table = Table(
        Column("task", no_wrap=True),  # several names differ at their ends only
        "prompts",
        "exact match",
        "blocks an answer",
        "steps a block",
        "in one step",
    )
    for score, single in zip(scores, in_one_step, strict=True):
        table.add_row(
            score.task,
            str(score.prompts),
            f"{score.accuracy:.1%}",
            f"{score.blocks / score.prompts:.2f}",
            f"{score.steps_per_block:.2f}",
            f"{single.accuracy:.1%}",
        )
    return table


if __name__ == "__main__":
    main()
