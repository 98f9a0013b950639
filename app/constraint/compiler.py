"""Compiles the constraints of requests, off the event loop, and keeps the latest."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from app.constraint import kinds
from app.constraint.compiling import compiled
from app.constraint.tokens import TokenTrie, token_trie
from app.prompting.vocabulary import Vocabulary
from app.threads import Pool
from engine.messages import Constraint

_MOST_KEPT = 64


@dataclass(frozen=True, eq=False)
class CompiledConstraint:
    message: Constraint
    least_tokens: int
    forced: tuple[int, ...]


class ConstraintCompiler:
    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._vocabulary, self._size = vocabulary, vocab_size
        self._pool = Pool("constraints", 1)
        self._kept: OrderedDict[object, asyncio.Future[CompiledConstraint]] = OrderedDict()

    @cached_property
    def _trie(self) -> TokenTrie:
        return token_trie(self._vocabulary, self._size)

    async def compiled(
        self, constraint: kinds.Constraint, ends: Sequence[int]
    ) -> CompiledConstraint:
        return await self._pool.run(self._compiled, constraint, ends)

    def _compiled(self, constraint: kinds.Constraint, ends: Sequence[int]) -> CompiledConstraint:
        made = compiled(constraint, self._trie, ends, self._vocabulary.encode_literally)
        assert made.automaton is not None
        message = Constraint(made.automaton.hash, made.automaton.to_bytes())
        return CompiledConstraint(message, made.least_tokens, made.forced)

    def close(self) -> None:
        self._pool.close()
