import json

import numpy as np
import pytest

from engine.constraint.grammar import (
    Frontier,
    GrammarVocabulary,
    grammar_fault,
    lark_grammar,
    schema_grammar,
)

_WORDS = [b"", *(bytes([byte]) for byte in range(1, 256)), b'{"', b'": ', b"12", b"", b""]
_ENDS = [len(_WORDS) - 2, len(_WORDS) - 1]
_VOCABULARY = GrammarVocabulary(_WORDS, _ENDS)


def _tokens(text: str) -> list[int]:
    return list(text.encode())


def test_a_frontier_knows_how_many_tokens_may_follow_and_changes_nothing():
    frontier = Frontier(_VOCABULARY, schema_grammar('{"type": "integer", "multipleOf": 3}'))
    assert frontier.allowed_prefix(_tokens("12x")) == 2
    assert frontier.allowed_prefix([*_tokens("12"), _ENDS[1]]) == 3
    assert frontier.allowed_prefix([*_tokens("13"), _ENDS[0]]) == 2
    assert not frontier.may_end
    frontier.advance([258])
    assert frontier.may_end
    assert frontier.allowed_prefix(_tokens("12x")) == 2


def test_a_mask_holds_the_tokens_that_may_follow_and_the_ends():
    frontier = Frontier(_VOCABULARY, lark_grammar('start: "a"+ /[0-9]{2}/'))
    assert np.flatnonzero(frontier.mask()).tolist() == _tokens("a")
    frontier.advance(_tokens("a"))
    assert set(np.flatnonzero(frontier.mask())) == {*_tokens("a0123456789"), 258}
    other = frontier.copy()
    other.advance([258])
    assert set(np.flatnonzero(other.mask())) == set(_ENDS)
    assert frontier.mask().sum() == 12


def test_a_token_that_may_not_follow_is_refused():
    frontier = Frontier(_VOCABULARY, lark_grammar('start: "a"'))
    with pytest.raises(ValueError, match=r".+"):
        frontier.advance(_tokens("b"))


def test_white_space_is_that_of_the_automata():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    frontier = Frontier(_VOCABULARY, schema_grammar(json.dumps(schema)))
    for text in ('{"a": 1}', '{"a":1}', '{\n  "a": 1\n}'):
        assert frontier.allowed_prefix(_tokens(text)) == len(text)
    assert frontier.allowed_prefix(_tokens('{"a":  1}')) == 6


def test_grammars_with_faults_are_named():
    assert grammar_fault(lark_grammar('start: "a"')) is None
    assert "unknown name" in grammar_fault(lark_grammar("start: b"))
    assert "not" in grammar_fault(schema_grammar('{"not": {}}'))
    with pytest.raises(ValueError, match="unknown name"):
        Frontier(_VOCABULARY, lark_grammar("start: b"))
