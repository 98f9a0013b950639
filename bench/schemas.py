"""Schemas of JSONSchemaBench: which are compiled, and whether instances are judged right.

The folder holds files of MaskBench (github.com/guidance-ai/jsonschemabench, maskbench/data), each
with a schema and with valid and invalid instances. The rows have MaskBench's columns: the time to
the first mask is that of compiling, and an instance is accepted if its tokens are an answer. Since
automata have a closed world, a valid instance with members that its schema does not name is
refused by design.
"""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.chat_format.gemma import ANSWER_ENDS
from app.constraint.compiling import Compiled, compiled
from app.constraint.kinds import Constraint, JsonSchema
from app.constraint.limits import ConstraintError
from app.constraint.tokens import token_texts, token_trie
from app.prompting.vocabulary import Vocabulary
from bench.compare import Row, Show, silent
from engine.constraint.grammar import Frontier, GrammarVocabulary

COLUMNS = [
    "schemas", "compiled", "automaton", "grammar", "valid", "accepted", "invalid", "refused",
    "ms_p50", "ms_p90", "ms_max", "step_us_p50", "states_p50", "classes_p50",
]  # fmt: skip


@dataclass
class Judged:
    """The results of one collection of schemas."""

    schemas: int = 0
    automata: int = 0
    grammars: int = 0
    valid: int = 0
    accepted: int = 0
    invalid: int = 0
    refused: int = 0
    compile_ms: list[float] = field(default_factory=list)
    step_us: list[float] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def row(self, name: str) -> Row:
        """Returns the row of the table. Times are those of this process' processor."""
        return {
            "case": name,
            "schemas": self.schemas,
            "compiled": self.automata + self.grammars,
            "automaton": self.automata,
            "grammar": self.grammars,
            "valid": self.valid,
            "accepted": self.accepted,
            "invalid": self.invalid,
            "refused": self.refused,
            "ms_p50": _quantile(self.compile_ms, 0.5),
            "ms_p90": _quantile(self.compile_ms, 0.9),
            "ms_max": _quantile(self.compile_ms, 1),
            "step_us_p50": _quantile(self.step_us, 0.5),
            "states_p50": _quantile(self.states, 0.5),
            "classes_p50": _quantile(self.classes, 0.5),
        }


class Judge:
    """Compiles schemas for one vocabulary, and judges instances by them."""

    def __init__(self, tokenizer: Path) -> None:
        self._vocabulary = Vocabulary(tokenizer)
        self._size = 1 + max(self._vocabulary.tokenizer.get_vocab(with_added_tokens=True).values())
        self._trie = token_trie(self._vocabulary, self._size)
        self._ends = self._vocabulary.control_ids([*ANSWER_ENDS, "<end_of_turn>", "<eos>"])
        texts = token_texts(self._vocabulary, self._size)
        self._grammars = GrammarVocabulary(
            [texts.get(token, b"") for token in range(self._size)], self._ends
        )

    def judge(self, case: dict[str, Any], judged: Judged) -> None:
        """Add the results of one file."""
        judged.schemas += 1
        start = time.thread_time()
        try:
            constraint = compiled(
                Constraint(JsonSchema(json.dumps(case["schema"]))), self._trie, self._ends
            )
        except ConstraintError as error:
            judged.faults.append(str(error))
            return
        finally:
            judged.compile_ms.append(1000 * (time.thread_time() - start))
        if constraint.automaton is not None:
            judged.automata += 1
            judged.states.append(constraint.automaton.states)
            judged.classes.append(constraint.automaton.classes)
        else:
            judged.grammars += 1
        for test in case.get("tests", ()):
            text = json.dumps(test["data"], ensure_ascii=False)
            tokens = self._vocabulary.encode_literally(text)
            start = time.perf_counter()
            accepted = self._accepts(constraint, [*tokens, self._ends[0]])
            judged.step_us.append(1e6 * (time.perf_counter() - start) / (len(tokens) + 1))
            if test["valid"]:
                judged.valid += 1
                judged.accepted += accepted
            else:
                judged.invalid += 1
                judged.refused += not accepted
                if accepted:
                    judged.faults.append(f"accepted: {text[:200]}")

    def _accepts(self, constraint: Compiled, tokens: Sequence[int]) -> bool:
        if constraint.automaton is None:
            assert constraint.grammar is not None
            frontier = Frontier(self._grammars, constraint.grammar)
            return frontier.allowed_prefix(tokens) == len(tokens)
        automaton = constraint.automaton
        state = automaton.start
        for token in tokens:
            state = int(automaton.next_state[state, automaton.token_class[token]])
            if state < 0:
                return False
        return state == automaton.end


def rows(
    folder: Path, tokenizer: Path, limit: int | None, seed: int, show: Show = silent
) -> Iterator[Row]:
    """Yields a row for each collection, and one for all of them.

    With a limit, so many files are drawn at random.
    """
    files = sorted(folder.glob("*.json"))
    if limit is not None and limit < len(files):
        files = sorted(random.Random(seed).sample(files, limit))
    show("reading the vocabulary")
    judge = Judge(tokenizer)
    collections: dict[str, Judged] = {}
    whole = Judged()
    for number, file in enumerate(files, 1):
        show(f"{number} of {len(files)} schemas: {file.name}")
        own = Judged()
        judge.judge(json.loads(file.read_text()), own)
        for judged in (collections.setdefault(_collection(file), Judged()), whole):
            _add(judged, own)
    for name, judged in sorted(collections.items()):
        yield judged.row(name)
    yield whole.row("all")


def _collection(file: Path) -> str:
    name = file.name.split("---")[0].removesuffix(".json")
    return name if name.startswith("Github") else name.split("_")[0]


def _add(total: Judged, own: Judged) -> None:
    for name, value in vars(own).items():
        setattr(total, name, getattr(total, name) + value)


def _quantile(values: Sequence[float], share: float) -> float | None:
    return round(float(np.quantile(values, share)), 2) if values else None
