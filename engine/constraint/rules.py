"""A request's constraint that is a grammar, which its answers share.

An answer always is the beginning of a text of the grammar. It is complete if the model ends it
within `max_tokens`: nothing is known of how many tokens the end takes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.constraint.grammar import Frontier, GrammarVocabulary

Mask = NDArray[np.bool_]


class GrammarRules:
    """What may follow the beginnings of an answer.

    `thought` are the control tokens of a thought, for which the grammar does not hold: the one that
    closes it, if the prompt ends in a thought, or the two that open and close it, if the answer may
    begin with one. It is empty if there is none.
    """

    def __init__(
        self, vocabulary: GrammarVocabulary, grammar: str, thought: Sequence[int] = ()
    ) -> None:
        """Raises ValueError if the grammar cannot be enforced."""
        self.end_tokens = vocabulary.ends
        self.vocab_size = vocabulary.size
        self._start = Frontier(vocabulary, grammar)
        self._thought = tuple(thought)
        self._in_thought = vocabulary.has_text.copy()
        if thought:
            self._in_thought[thought[-1]] = True

    def needed_tokens(self, answer: Sequence[int]) -> int | None:
        """Returns the least number of tokens that are known to be missing behind a beginning.

        Returns None if no allowed answer begins so.
        """
        right, complete = self.read(answer)
        return None if right < len(answer) else 0 if complete else 1

    def read(self, answer: Sequence[int]) -> tuple[int, bool]:
        """Returns how many of the answer's first tokens are allowed, and whether it is complete.

        Raises ValueError if the grammar has become too complex.
        """
        spoken = self._spoken(answer)
        thought = answer if spoken is None else answer[:spoken]
        for index, token in enumerate(thought):
            opens = index == 0 and len(self._thought) == 2
            if not self._in_thought[token] and not opens:
                return index, False
        if spoken is None:
            return len(answer), False
        text = answer[spoken:]
        end = next((i for i, token in enumerate(text) if token in self.end_tokens), len(text))
        frontier = self._start.copy()
        right = frontier.allowed_prefix(text[:end])
        if right == end < len(text):
            frontier.advance(text[:end])
            if frontier.may_end:
                return spoken + end + 1, True
        return spoken + right, False

    def mask(self, answer: Sequence[int]) -> Mask:
        """Returns which tokens [V] may follow an allowed beginning.

        Raises ValueError if the grammar has become too complex.
        """
        spoken = self._spoken(answer)
        if spoken is None:
            return self._in_thought
        frontier = self._start.copy()
        frontier.advance(answer[spoken:])
        mask = frontier.mask()
        if not answer and len(self._thought) == 2:
            mask[self._thought[0]] = True
        return mask

    def _spoken(self, answer: Sequence[int]) -> int | None:
        """Returns the index of the first token behind the thought, or None while it is open."""
        if not self._thought:
            return 0
        *opener, close = self._thought
        if opener and list(answer[:1]) != opener:
            return 0
        return next((i + 1 for i, token in enumerate(answer) if token == close), None)
