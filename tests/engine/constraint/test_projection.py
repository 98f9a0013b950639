"""The likeliest allowed canvas, compared with trying all of them."""

import itertools
import random

import numpy as np
import pytest

from engine.constraint.projection import FREE, Projector
from tests.engine.toy_automata import Text, automaton, one_of, text

LETTERS = [b"", b"a", b"b", b"ab", b"ba", b"aa", b"", b"c"]
END = 6


def random_text(rng: random.Random, depth: int = 3) -> Text:
    kind = rng.choice(["letter", "add", "or", "many"]) if depth else "letter"
    match kind:
        case "letter":
            return text(rng.choice(["a", "b", "c", "ab", ""]))
        case "add":
            return random_text(rng, depth - 1) + random_text(rng, depth - 1)
        case "or":
            return random_text(rng, depth - 1) | random_text(rng, depth - 1)
        case _:
            return random_text(rng, depth - 1).many()


def brute_force(projector: Projector, start: int, regrets, tokens_left: int) -> float:
    """Returns the least sum of regrets with which the positions can be filled, or infinity."""
    made = projector.automaton
    least = np.inf
    for classes in itertools.product(range(1, made.classes), repeat=len(regrets)):
        state, cost = start, 0.0
        for position, kind in enumerate(classes):
            if state == made.end:
                break
            state = int(made.next_state[state, kind])
            if state < 0:
                break
            cost += float(regrets[position, kind])
        if state >= 0 and made.need[state] <= tokens_left:
            least = min(least, cost)
    return least


def cost_of(projector: Projector, start: int, regrets, classes, tokens_left: int) -> float:
    """Returns the sum of regrets of classes that must be allowed."""
    made, state, cost = projector.automaton, start, 0.0
    for position, kind in enumerate(classes):
        if kind == FREE:
            assert state == made.end
            continue
        cost += float(regrets[position, kind])
        state = int(made.next_state[state, kind])
        assert state >= 0
    assert made.need[state] <= tokens_left
    return cost


@pytest.mark.parametrize("seed", range(150))
def test_no_allowed_canvas_is_cheaper_than_the_chosen_one(seed):
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    projector = Projector(automaton(random_text(rng), LETTERS, [END]))
    made = projector.automaton
    positions, tokens_left = rng.randint(1, 4), rng.randint(0, 3)
    regrets = numbers.exponential(3.0, (positions, made.classes)).astype(np.float32)
    regrets[numbers.random(regrets.shape) < 0.2] = 0
    regrets[:, 0] = np.inf
    start = rng.randrange(made.states - 1)
    least = brute_force(projector, start, regrets, tokens_left)
    if least == np.inf:
        with pytest.raises(ValueError, match="has room for"):
            projector.classes(start, regrets, tokens_left)
    else:
        classes = projector.classes(start, regrets, tokens_left)
        cost = cost_of(projector, start, regrets, classes, tokens_left)
        assert cost == pytest.approx(least)


def test_a_state_whose_need_fits_the_room_always_has_a_canvas():
    projector = Projector(automaton(text("abab") + one_of("ab").many(), LETTERS, [END]))
    made = projector.automaton
    for start in range(made.states):
        for positions in range(1, 6):
            regrets = np.full((positions, made.classes), 5.0, np.float32)
            tokens_left = max(int(made.need[start]) - positions, 0)
            classes = projector.classes(start, regrets, tokens_left)
            cost_of(projector, start, regrets, classes, tokens_left)


def test_a_huge_regret_does_not_hide_small_ones():
    allowed = text("a") + (text("a") | text("b"))
    projector = Projector(automaton(allowed, [b"", b"a", b"b", b""], [3]))
    made = projector.automaton
    regrets = np.full((3, made.classes), 1e9, np.float32)  # as for banned tokens
    regrets[1] = 2.0
    b = made.token_class[2]
    regrets[1, b] = 0.5
    assert projector.classes(made.start, regrets, 0)[1] == b


def test_reading_stops_in_front_of_a_wrong_token_and_behind_the_end():
    projector = Projector(automaton(text("ab") | text("aba"), LETTERS, [END]))
    start = projector.automaton.start
    assert len(projector.states(start, [1, 1, 2])) == 1
    assert projector.states(start, [3, END, 7, 7])[1:] == [projector.automaton.end]
    assert projector.states(start, []) == []


def test_the_tokens_that_a_beginning_still_needs_are_counted_with_the_end_token():
    projector = Projector(automaton(text("aba"), LETTERS, [END]))
    assert projector.needed_tokens([]) == 3  # "ab", "a", the end
    assert projector.needed_tokens([3, 1]) == 1
    assert projector.needed_tokens([3, 1, END]) == 0
    assert projector.needed_tokens([2]) is None


def test_only_a_token_without_any_alternative_is_the_only_one():
    projector = Projector(automaton(text("ac"), LETTERS, [END]))
    start = projector.automaton.start
    assert projector.only_token(start) == 1
    (behind_a,) = projector.states(start, [1])
    assert projector.only_token(behind_a) == 7
    alternatives = Projector(automaton(text("ab"), LETTERS, [END]))  # "a" or "ab"
    assert alternatives.only_token(alternatives.automaton.start) is None
    several_ends = Projector(automaton(text(""), LETTERS, [0, END]))
    assert several_ends.only_token(several_ends.automaton.start) is None


def test_the_tokens_that_end_an_answer_are_known():
    assert Projector(automaton(text("a"), LETTERS, [0, END])).end_tokens == {0, END}
