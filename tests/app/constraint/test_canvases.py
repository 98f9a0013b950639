"""Random schemas and random canvases: what comes out is valid and within `max_tokens`.

The schemas and canvases are the same in every run. `make schemas` makes different ones for the
given number of minutes.
"""

import json
import os
import random
from time import monotonic
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from app.constraint.compiling import compiled
from app.constraint.kinds import Constraint, JsonSchema
from app.constraint.limits import ConstraintError
from engine.constraint.automaton import Automaton
from engine.constraint.projection import Projector
from engine.denoise.canvas_constraint import CanvasConstraint
from engine.tail.class_best import ClassBest
from tests.app.constraint.answers import END, SIZE, an_answer, text_of, toy_trie
from tests.app.constraint.schemas import schemas

SECONDS = float(os.environ.get("SCHEMAS_SECONDS", "0"))  # 0: a fixed set of schemas instead
EXAMPLES = 60
WIDTH = 12
STEPS = 3
_TRIE = toy_trie()


class RandomLogits:
    """Logits of a canvas in which the best token of each class is one of it, drawn at random."""

    def __init__(self, chosen: random.Random) -> None:
        self._random = np.random.default_rng(chosen.randrange(2**32))

    def best_of_classes(self, projector: Projector, positions: slice) -> ClassBest:
        automaton = projector.automaton
        rows = positions.stop - positions.start
        regrets = self._random.exponential(5, (rows, automaton.classes)).astype(np.float32)
        tokens = np.zeros(regrets.shape, np.int64)
        for number in range(automaton.classes):
            members = np.flatnonzero(automaton.token_class == number)
            if number == 0 or not members.size:
                regrets[:, number] = np.inf
            else:
                tokens[:, number] = self._random.choice(members, rows)
        return ClassBest(regrets, tokens)

    def best(self, *_: object) -> int:
        raise AssertionError("automata ask for classes")


def _draft(automaton: Automaton, state: int, kind: str, chosen: random.Random) -> list[int]:
    """Returns tokens that a model may want from a state on."""
    if kind == "noise":
        return [chosen.randrange(SIZE) for _ in range(WIDTH)]
    if kind == "no end":
        # It opens what takes most tokens to be closed.
        tokens = []
        for _ in range(WIDTH):
            targets = automaton.next_state[state]
            open_classes = np.flatnonzero((targets >= 0) & (targets != automaton.end))
            if not open_classes.size:
                break
            best = max(open_classes, key=lambda each: (automaton.need[targets[each]], each))
            tokens.append(int(chosen.choice(np.flatnonzero(automaton.token_class == best))))
            state = int(targets[best])
        return [*tokens, *[0] * (WIDTH - len(tokens))]
    answer = [*an_answer(automaton, chosen, automaton.least_tokens + 30), END] + [0] * WIDTH
    at = chosen.randrange(len(answer) - WIDTH)
    tokens = answer[at : at + WIDTH]
    tokens[chosen.randrange(WIDTH)] = chosen.randrange(SIZE)
    return tokens


def _answer(projector: Projector, budget: int, chosen: random.Random) -> list[int]:
    """Returns the tokens of an answer that is made block by block, without its end token."""
    answer: list[int] = []
    while True:
        canvas = CanvasConstraint.behind(projector, answer, budget - len(answer), WIDTH)
        kind = chosen.choice(["noise", "no end", "a wrong token"])
        draft: list[int] = []
        for step in range(STEPS):
            draft = _draft(projector.automaton, canvas.start, kind, chosen)
            draft[: len(canvas.fixed)] = canvas.fixed
            right = canvas.right_tokens(draft)
            if right < canvas.positions:
                draft = canvas.corrected(draft, right, RandomLogits(chosen))
                if step < STEPS - 1:
                    canvas.fix(draft, min(right + 1, canvas.positions))
        assert canvas.right_tokens(draft) == canvas.positions
        tokens = draft[: canvas.positions]
        answer += tokens
        if END in tokens:
            return answer[: answer.index(END)]
        assert len(answer) < budget


def _judge(schema: Any, number: int) -> None:
    try:
        constraint = compiled(Constraint(JsonSchema(json.dumps(schema))), _TRIE, [END])
    except ConstraintError:
        return
    automaton = constraint.automaton
    if automaton is None:
        return
    projector = Projector(automaton)
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    chosen = random.Random(number)
    for more in (0, 1, 7, 60):
        tokens = _answer(projector, automaton.least_tokens + more, chosen)
        validator.validate(json.loads(text_of(tokens)))


def test_what_any_canvas_becomes_is_valid_and_within_its_budget():
    judge = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),  # a schema takes too long to be shrunk
    )(given(schemas(), st.integers(0, 2**32))(_judge))
    first = random.SystemRandom().randrange(2**32) if SECONDS else 0
    started, number = monotonic(), first
    while number == first or monotonic() - started < SECONDS:
        print(f"seed {number}")  # shown with a failure
        seed(number)(judge)()
        number += 1
