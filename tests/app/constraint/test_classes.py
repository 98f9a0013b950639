import random

import numpy as np
import pytest

from app.constraint.characters import utf8
from app.constraint.classes import FIRST_CONTROL, automaton
from app.constraint.expressions import Embedded, any_of, optional, repeated, sequence, symbols, word
from app.constraint.limits import Effort
from app.constraint.machines import machine
from app.constraint.patterns import whole_match
from engine.constraint.automaton import UNREACHABLE
from tests.app.constraint.answers import END, FIRST, SIZE, TEXTS, toy_trie

_TRIE = toy_trie()


def _machines():
    quote = symbols([(FIRST_CONTROL + FIRST + 1,) * 2])
    for pattern in ("[a-c]*", "(ab|a)*b", ".{2,5}", '\\{"name": "[^"]*"\\}', "é|日本", "a{3}"):
        yield pattern, machine(Embedded(whole_match(pattern, Effort()), utf8), Effort())
    with_control = sequence(word(b"call:"), optional(sequence(quote, word(b"ab"), quote)))
    yield "control", machine(any_of([with_control, repeated(word(b"12"), 0, 3)]), Effort())


@pytest.mark.parametrize(
    ("name", "reads_bytes"), [pytest.param(*each, id=each[0]) for each in _machines()]
)
def test_tokens_lead_where_their_bytes_lead(name, reads_bytes):
    made = automaton(reads_bytes, _TRIE, [END], Effort())
    made.check()
    symbols_of = {token: tuple(text) for token, text in TEXTS.items()}
    symbols_of |= {token: (FIRST_CONTROL + token,) for token in range(FIRST + 1, FIRST + 6)}

    def after(state: int | None, token: int) -> int | None:
        for symbol in symbols_of.get(token, (-1,)):
            state = None if state is None else reads_bytes.after(state, symbol)
        return state

    # Both are walked from their starts at the same time.
    pairs = {(0, made.start)}
    waiting = list(pairs)
    while waiting:
        byte_state, state = waiting.pop()
        ends = made.next_state[state, made.token_class[END]] == made.end
        assert ends == reads_bytes.accepting[byte_state]
        for token in range(SIZE):
            if token == END:
                continue
            target = after(byte_state, token)
            own = int(made.next_state[state, made.token_class[token]])
            # A state from which no token leads to the end is left out.
            assert (own >= 0) == (target is not None), (name, token)
            if target is not None and (target, own) not in pairs:
                pairs.add((target, own))
                waiting.append((target, own))


def test_need_is_the_length_of_the_shortest_answer():
    for _, reads_bytes in _machines():
        made = automaton(reads_bytes, _TRIE, [END], Effort())
        need = np.full(made.states, UNREACHABLE, np.int64)
        need[made.end] = 0
        for _ in range(made.states):
            targets = np.where(made.next_state >= 0, need[made.next_state], UNREACHABLE)
            need = np.minimum(need, 1 + targets.min(1))
        assert (need == made.need).all()
        assert (need < UNREACHABLE).all()


def test_no_two_classes_and_no_two_states_are_alike():
    for _, reads_bytes in _machines():
        made = automaton(reads_bytes, _TRIE, [END], Effort())
        columns = made.next_state[:, 1:]
        assert len(np.unique(columns, axis=1).T) == made.classes - 1
        assert (columns >= 0).any(0).all()


def test_tokens_without_symbols_are_never_allowed():
    anything = machine(repeated(symbols([(0, 255)]), 0, None), Effort())
    made = automaton(anything, _TRIE, [END], Effort())
    assert set(np.flatnonzero(made.token_class == 0)) == set(range(FIRST + 1, SIZE))


def test_several_tokens_may_end_an_answer():
    made = automaton(machine(word(b"ab"), Effort()), _TRIE, [END, SIZE - 1], Effort())
    assert made.token_class[END] == made.token_class[SIZE - 1]
    assert made.least_tokens == 2  # the token "ab", and an end


def test_the_vocabulary_may_have_no_token_for_what_is_allowed():
    other = symbols([(FIRST_CONTROL + SIZE + 5,) * 2])
    made = automaton(machine(other, Effort()), _TRIE, [END], Effort())
    assert made.least_tokens == UNREACHABLE


def test_a_large_machine_gives_the_same_as_a_small_one():
    chosen = random.Random(3)
    words = sorted({"".join(chosen.choices("abc12", k=chosen.randrange(1, 9))) for _ in range(400)})
    made = automaton(
        machine(any_of([word(w.encode()) for w in words]), Effort()), _TRIE, [END], Effort()
    )
    for text in [*words, *(w + "a" for w in words)]:
        state = made.start
        for byte in text.encode():
            state = int(made.next_state[state, made.token_class[byte]]) if state >= 0 else -1
        ends = state >= 0 and made.next_state[state, made.token_class[END]] == made.end
        assert ends == (text in words)
