"""Measures the demo model's exact match on held-out prompts of each task, on Easel's engine.

`python -m demo.evaluate` prints the table of demo/README.md. The same options always give the same
answers, so the table shows the effect of any change to the sampler or the engine.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo.tasks import TASKS, held_out
from demo.tokenizer import encode_example
from engine.config import DEMO_MODEL, EngineConfig
from engine.loading import build_denoiser
from engine.messages import Block, GenerateRequest, Sampling
from engine.worker import Worker


@dataclass(frozen=True)
class Score:
    """The results of one task."""

    task: str
    prompts: int
    right: int
    blocks: int
    denoising_steps: int

    @property
    def accuracy(self) -> float:
        return self.right / self.prompts

    @property
    def steps_per_block(self) -> float:
        return self.denoising_steps / self.blocks


def evaluate(
    task: str,
    worker: Worker,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: int,
    temperature: float,
    show_mistakes: bool = False,
) -> Score:
    """Answer `prompts` held-out prompts of a task. Returns its score.

    An answer is right if it equals the expected one token for token.
    """
    right = blocks = steps = 0
    for index, example in enumerate(held_out(task, prompts)):
        prompt, expected = encode_example(tokenizer, example)
        room = 2 * len(expected) + 64  # leaves room for an answer that is too long
        request = GenerateRequest(f"{task}-{index}", prompt, room, Sampling(index, temperature))
        made = [m for m in worker.generate(request) if isinstance(m, Block)]
        answer = [token for block in made for token in block.tokens]
        right += answer == expected
        blocks += len(made)
        steps += sum(block.denoising_steps for block in made)
        if show_mistakes and answer != expected:
            print(f"{task}: {tokenizer.decode(expected)!r} but {tokenizer.decode(answer)!r}")
    return Score(task, prompts, right, blocks, steps)


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
    scores = [
        evaluate(
            task,
            worker,
            tokenizer,
            prompts=options.prompts,
            temperature=options.temperature,
            show_mistakes=options.mistakes,
        )
        for task in track(options.tasks, description="Evaluating", transient=True)
    ]
    Console().print(_table(scores))
    if options.json:
        rows = [
            {
                "case": score.task,
                "accuracy": score.accuracy,
                "steps_per_block": score.steps_per_block,
                "blocks_per_answer": score.blocks / score.prompts,
            }
            for score in scores
        ]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _table(scores: list[Score]) -> Table:
    table = Table("task", "prompts", "exact match", "blocks an answer", "steps a block")
    total = Score(
        "all",
        sum(s.prompts for s in scores),
        sum(s.right for s in scores),
        sum(s.blocks for s in scores),
        sum(s.denoising_steps for s in scores),
    )
    for score in [*scores, total]:
        table.add_row(
            score.task,
            str(score.prompts),
            f"{score.accuracy:.1%}",
            f"{score.blocks / score.prompts:.2f}",
            f"{score.steps_per_block:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
