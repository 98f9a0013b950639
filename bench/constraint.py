"""The cost of a constraint: compiling it once, and reading and correcting a draft in a step.

A schema has so many fields, of four kinds by turns. The class reduction reads the logits of a
canvas of 256 positions. It is compared with the vocabulary tail, which every step makes, at a small
hidden size, so that the products of either hide as little as possible.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from app.chat_format.gemma import ANSWER_ENDS
from app.constraint.compiling import compiled
from app.constraint.kinds import Constraint, JsonSchema
from app.constraint.tokens import token_trie
from app.prompting.vocabulary import Vocabulary
from bench.compare import Row, Show, silent
from engine.constraint.projection import Projector
from engine.denoise.canvas_constraint import CanvasConstraint
from engine.tail.class_best import TokenClasses, class_best
from engine.tail.vocab_tail import vocab_tail

COLUMNS = [
    "states",
    "classes",
    "compile_ms",
    "tables_ms",
    "read_ms",
    "search_ms",
    "reduce_ms",
    "tail_ms",
]
FIELDS = (2, 5, 10, 30)
CANVAS, WIDTH, SOFTCAP = 256, 64, 30.0
_KINDS = (
    {"type": "string"},
    {"type": "integer"},
    {"type": "boolean"},
    {"enum": ["red", "green", "blue"]},
)
_NAMES = ("name", "birthday", "address", "count", "temperature", "colour", "enabled", "total")


def rows(rounds: int, tokenizer: Path, show: Show = silent) -> Iterator[Row]:
    show(f"reading {tokenizer}")
    vocabulary = Vocabulary(tokenizer)
    size = 1 + max(vocabulary.tokenizer.get_vocab(with_added_tokens=True).values())
    trie = token_trie(vocabulary, size)
    ends = vocabulary.control_ids([*ANSWER_ENDS, "<end_of_turn>", "<eos>"])
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(CANVAS, WIDTH, generator=generator)
    embedding = torch.randn(size, WIDTH, generator=generator)
    temperatures = torch.ones(CANVAS)
    for count in FIELDS:
        show(f"{count} fields")
        constraint = Constraint(JsonSchema(json.dumps(schema(count))))
        # It runs only once, so this is the processor's time, which other work changes least.
        started = time.process_time()
        automaton = compiled(constraint, trie, ends).automaton
        assert automaton is not None
        compile_ms = 1000 * (time.process_time() - started)
        projector = Projector(automaton)
        classes = TokenClasses(automaton.token_class, automaton.classes, torch.device("cpu"))
        best = class_best(hidden, embedding, classes, softcap=SOFTCAP)
        canvas = CanvasConstraint(projector, automaton.start, CANVAS, 10_000)
        chosen = projector.classes(automaton.start, best.regrets, 10_000)
        allowed = np.where(chosen < 0, 0, best.tokens[np.arange(CANVAS), chosen]).tolist()
        assert canvas.right_tokens(allowed) == CANVAS
        yield {
            "case": f"{count} fields",
            "states": automaton.states,
            "classes": automaton.classes,
            "compile_ms": compile_ms,
            "tables_ms": _ms(lambda each=automaton: Projector(each), rounds),  # type: ignore[misc]
            "read_ms": _ms(lambda c=canvas, d=allowed: c.right_tokens(d), rounds),  # type: ignore[misc]
            "search_ms": _ms(
                lambda p=projector, b=best: p.classes(p.automaton.start, b.regrets, 10_000),  # type: ignore[misc]
                rounds,
            ),
            "reduce_ms": _ms(
                lambda c=classes: class_best(hidden, embedding, c, softcap=SOFTCAP),  # type: ignore[misc]
                rounds,
            ),
            "tail_ms": _ms(
                lambda: vocab_tail(
                    hidden, embedding, temperatures, softcap=SOFTCAP, embedding_scale=16.0
                ),
                rounds,
            ),
        }


def schema(fields: int) -> dict[str, object]:
    """Returns the schema of an object with so many required fields."""
    names = [f"{_NAMES[i % 8]}{i // 8 or ''}" for i in range(fields)]
    return {
        "type": "object",
        "properties": {name: _KINDS[i % 4] for i, name in enumerate(names)},
        "required": names,
        "additionalProperties": False,
    }


def _ms(work: Callable[[], object], rounds: int) -> float:
    """Returns the median time of so many runs, after one more."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return median(times[1:])
