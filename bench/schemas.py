"""Schemas of JSONSchemaBench: which are compiled, and whether instances are judged right.

The folder holds files of MaskBench (github.com/guidance-ai/jsonschemabench, maskbench/data), each
with a schema and with valid and invalid instances. The rows have MaskBench's columns: the time to
the first mask is that of compiling, and an instance is accepted if its tokens are an answer.

Automata have a closed world, so they refuse some valid instances by design. Each of these is
counted under the least change that makes it accepted: its keys in the schema's order, or also
without the keys that the schema does not list. Besides, each automaton writes random answers, and
these are validated.

Each file is judged in a process of its own with a time limit. Its result is appended to a file
when it is known, so that a measurement that was interrupted goes on where it was.
"""

import json
import multiprocessing
import random
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema_rs import FancyRegexOptions, ValidationError, validator_for

from app.chat_format.gemma import ANSWER_ENDS
from app.constraint.compiling import Compiled, compiled
from app.constraint.kinds import Constraint, JsonSchema
from app.constraint.limits import ConstraintError
from app.constraint.tokens import token_texts, token_trie
from app.prompting.vocabulary import Vocabulary
from bench.compare import Row, Show, silent
from bench.instances import in_order, listed_only
from engine.constraint.automaton import Automaton
from engine.constraint.grammar import Frontier, GrammarVocabulary

COLUMNS = [
    "schemas", "compiled", "automaton", "grammar", "valid", "accepted", "key_order", "unlisted",
    "other", "invalid", "refused", "outputs", "outputs_valid", "ms_p50", "ms_p90", "ms_max",
    "step_us_p50", "states_p50", "classes_p50",
]  # fmt: skip
MOST_SECONDS = 120  # of a processor, for one file
_SPARE_TOKENS = (0, 5, 50, 300)  # beyond the least number, for each answer that is written
# The first use of a class of characters takes long, which no file is to be blamed for.
_FIRST: dict[str, Any] = {"schema": {"type": "string", "pattern": r"^[^\w\s]\p{L}$"}}


@dataclass
class Judged:
    """The results of one file, or of a collection of files."""

    schemas: int = 0
    automata: int = 0
    grammars: int = 0
    valid: int = 0
    accepted: int = 0
    key_order: int = 0
    unlisted: int = 0
    other: int = 0
    invalid: int = 0
    refused: int = 0
    outputs: int = 0
    outputs_valid: int = 0
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
            "key_order": self.key_order,
            "unlisted": self.unlisted,
            "other": self.other,
            "invalid": self.invalid,
            "refused": self.refused,
            "outputs": self.outputs,
            "outputs_valid": self.outputs_valid,
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
        self._texts = token_texts(self._vocabulary, self._size)
        self._grammars = GrammarVocabulary(
            [self._texts.get(token, b"") for token in range(self._size)], self._ends
        )

    def judge(self, case: dict[str, Any]) -> Judged:
        """Returns the results of one file."""
        schema = case["schema"]
        judged = Judged(schemas=1)
        start = time.thread_time()
        try:
            constraint = compiled(
                Constraint(JsonSchema(json.dumps(schema))), self._trie, self._ends
            )
        except ConstraintError as error:
            judged.faults.append(f"{error} at {error.path}")
            return judged
        finally:
            judged.compile_ms.append(1000 * (time.thread_time() - start))
        for test in case.get("tests", ()):
            self._judge_instance(schema, constraint, test["data"], bool(test["valid"]), judged)
        if constraint.automaton is None:
            judged.grammars = 1
        else:
            judged.automata = 1
            judged.states.append(constraint.automaton.states)
            judged.classes.append(constraint.automaton.classes)
            self._judge_outputs(schema, constraint.automaton, judged)
        return judged

    def _judge_instance(
        self, schema: Any, constraint: Compiled, data: Any, valid: bool, judged: Judged
    ) -> None:
        tokens = self._tokens(data)
        start = time.perf_counter()
        accepted = self._accepts(constraint, tokens)
        judged.step_us.append(1e6 * (time.perf_counter() - start) / len(tokens))
        if not valid:
            judged.invalid += 1
            judged.refused += not accepted
            if accepted:
                judged.faults.append(f"accepted: {json.dumps(data)[:300]}")
            return
        judged.valid += 1
        if accepted:
            judged.accepted += 1
        elif self._accepts(constraint, self._tokens(in_order(data, schema))):
            judged.key_order += 1
        elif self._accepts(constraint, self._tokens(listed_only(data, schema))):
            judged.unlisted += 1
        else:
            judged.other += 1
            judged.faults.append(f"not accepted: {json.dumps(data)[:300]}")

    def _judge_outputs(self, schema: Any, automaton: Automaton, judged: Judged) -> None:
        try:
            validator = validator_for(
                schema, validate_formats=True, pattern_options=FancyRegexOptions(size_limit=2**24)
            )
        except ValidationError as error:
            judged.faults.append(f"no validator: {error.message[:200]}")
            return
        tokens_of_class = _tokens_of_class(automaton)
        for number, spare in enumerate(_SPARE_TOKENS):
            chosen = random.Random(number)
            text = b"".join(
                self._texts[chosen.choice(tokens_of_class[each])]
                for each in random_answer(automaton, chosen, automaton.least_tokens + spare)
            )
            judged.outputs += 1
            if validator.is_valid(json.loads(text)):
                judged.outputs_valid += 1
            else:
                judged.faults.append(f"written: {text.decode()[:300]}")

    def _tokens(self, data: Any) -> list[int]:
        text = json.dumps(data, ensure_ascii=False)
        return [*self._vocabulary.encode_literally(text), self._ends[0]]

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


def random_answer(automaton: Automaton, chosen: random.Random, budget: int) -> list[int]:
    """Returns the classes of a random answer's tokens, without the end token.

    With the end token they are at most `budget`, which must be enough.
    """
    classes: list[int] = []
    state = automaton.start
    while True:
        targets = automaton.next_state[state]
        left = budget - len(classes) - 1
        own = np.flatnonzero((targets >= 0) & (automaton.need[targets] <= left))
        number = int(own[chosen.randrange(len(own))])
        if int(targets[number]) == automaton.end:
            return classes
        classes.append(number)
        state = int(targets[number])


def rows(
    folder: Path,
    tokenizer: Path,
    limit: int | None,
    seed: int,
    processes: int = 1,
    results: Path | None = None,
    show: Show = silent,
) -> Iterator[Row]:
    """Yields a row for each collection, and one for all of them.

    With a limit, so many files are drawn at random. `results` is a file of JSON lines. Files that
    it has a result for are not judged again, and it is given those of the others.
    """
    files = sorted(folder.glob("*.json"))
    if limit is not None and limit < len(files):
        files = sorted(random.Random(seed).sample(files, limit))
    known = {} if results is None or not results.exists() else _read(results)
    show("reading the vocabulary")
    unknown = [file for file in files if file.name not in known]
    random.Random(seed).shuffle(unknown)  # so that what is known meanwhile is a fair sample
    for number, (file, judged) in enumerate(_judged(unknown, Judge(tokenizer), processes), 1):
        show(f"{number} of {len(unknown)} schemas: {file.name}")
        known[file.name] = judged
        if results is not None:
            with results.open("a") as lines:
                lines.write(json.dumps({"file": file.name, **asdict(judged)}) + "\n")
    collections: dict[str, Judged] = {}
    whole = Judged()
    for file in files:
        for judged in (collections.setdefault(_collection(file), Judged()), whole):
            _add(judged, known[file.name])
    for name, judged in sorted(collections.items()):
        yield judged.row(name)
    yield whole.row("all")


def _read(results: Path) -> dict[str, Judged]:
    lines = map(json.loads, results.read_text().splitlines())
    return {line.pop("file"): Judged(**line) for line in lines}


def _judged(files: list[Path], judge: Judge, processes: int) -> Iterator[tuple[Path, Judged]]:
    """Yields the results of the files as they are known, of so many at a time."""
    judge.judge(_FIRST)
    # Forked processes have the vocabulary, and what was computed with it.
    context = multiprocessing.get_context("fork")
    waiting = files[::-1]
    running: dict[Any, tuple[Path, ForkProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                file = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_send, args=(judge, file, theirs))
                process.start()
                theirs.close()
                running[ours] = (file, process)
            for each in wait(list(running)):
                file, process = running.pop(each)
                yield file, _received(each)
                process.join()
    finally:
        for _, process in running.values():
            process.kill()


def _send(judge: Judge, file: Path, to: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
    to.send(judge.judge(json.loads(file.read_text())))


def _received(ours: Any) -> Judged:
    try:
        result: Judged = ours.recv()
    except EOFError:
        return Judged(schemas=1, faults=[f"no result within {MOST_SECONDS} s of a processor"])
    return result


def _collection(file: Path) -> str:
    name = file.name.split("---")[0].removesuffix(".json")
    return name if name.startswith("Github") else name.split("_")[0]


def _add(total: Judged, own: Judged) -> None:
    for name, value in vars(own).items():
        setattr(total, name, getattr(total, name) + value)


def _tokens_of_class(automaton: Automaton) -> list[list[int]]:
    order = np.argsort(automaton.token_class, kind="stable")
    ends = np.cumsum(np.bincount(automaton.token_class, minlength=automaton.classes))
    return [each.tolist() for each in np.split(order, ends[:-1])]


def _quantile(values: Sequence[float], share: float) -> float | None:
    return round(float(np.quantile(values, share)), 2) if values else None
