"""Constraints that are no automata: llguidance, which knows for each prefix what may follow it.

The front end checks grammars here, and the worker keeps one `Frontier` for each answer. A frontier
guarantees that the answer is always a valid prefix. It does not know how many tokens the end takes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

# The white space of the automata. If it were unlimited, an answer could consist of it.
_SCHEMA_OPTIONS: Any = {
    "whitespace_pattern": r"( |\n[ \t]*)",
    "json_allow_general_unicode_escapes": True,
}
_LIMITS = LLParserLimits(initial_lexer_fuel=2_000_000, max_grammar_size=500_000)


def schema_grammar(schema: str) -> str:
    """Returns the grammar of a JSON schema, which is JSON text itself."""
    return str(LLMatcher.grammar_from_json_schema(schema, overrides=_SCHEMA_OPTIONS))


def lark_grammar(lark: str) -> str:
    """Returns the grammar of a text in Lark's format."""
    return str(LLMatcher.grammar_from_lark(lark))


def grammar_fault(grammar: str) -> str | None:
    """Returns why a grammar cannot be enforced, or None."""
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=_LIMITS)
    return messages[0] if failed else None


class GrammarVocabulary:
    """A vocabulary for grammars: the bytes of each token, none for those that are never allowed."""

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int]) -> None:
        self.size = len(tokens)
        self.ends = frozenset(ends)
        self.has_text = np.array([len(text) > 0 for text in tokens])
        self.tokenizer = LLTokenizer(
            TokenizerWrapper(_Tokens(tokens, ends)), len(tokens), list(ends)
        )


class _Tokens:
    """What `TokenizerWrapper` wants to know. It encodes byte by byte: no result depends on it."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.eos_token_id = ends[0]
        self.special_token_ids = [*ends, *(i for i, text in enumerate(tokens) if not text)]
        self._single = {text: token for token, text in enumerate(tokens) if len(text) == 1}

    def __call__(self, text: bytes) -> list[int]:
        return [self._single[bytes((each,))] for each in text if bytes((each,)) in self._single]


class Frontier:
    """The state of one answer: what it says so far, and what may follow."""

    def __init__(self, vocabulary: GrammarVocabulary, grammar: str) -> None:
        """Raises ValueError if the grammar cannot be enforced."""
        self._size = vocabulary.size
        self._matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=_LIMITS)
        self._check()

    def allowed_prefix(self, tokens: Sequence[int]) -> int:
        """Returns how many of the tokens, from the first one, may follow. Changes nothing."""
        return int(self._matcher.validate_tokens(list(tokens)))

    def mask(self) -> NDArray[np.bool_]:
        """Returns for each token [V] whether it may follow. The end tokens are among them.

        Raises ValueError if the grammar has become too complex.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little")[: self._size].astype(bool)

    def advance(self, tokens: Sequence[int]) -> None:
        """Append tokens to the answer. Raises ValueError if one of them may not follow."""
        self._matcher.consume_tokens(list(tokens))
        self._check()

    @property
    def may_end(self) -> bool:
        """Returns whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    def copy(self) -> "Frontier":
        """Returns a frontier with the same state, which advances on its own."""
        other = object.__new__(Frontier)
        other._size, other._matcher = self._size, self._matcher.deep_copy()
        return other

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(str(self._matcher.get_error()))
