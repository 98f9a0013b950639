"""Compiled constraints as the messages that the worker needs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from app.chat_format.gemma import ANSWER_ENDS, CHANNEL, CHANNEL_END
from app.constraint import kinds
from app.constraint.compiler import Compiler
from app.constraint.compiling import Compiled
from app.constraint.tokens import TokenTrie, token_texts, token_trie
from app.prompting.vocabulary import Vocabulary
from app.threads import Run
from engine.messages import Constraint, Texts


@dataclass(frozen=True, eq=False)
class Enforced:
    """A constraint as the worker enforces it.

    The worker gets `message` before a request that names the constraint by its hash. Any of the
    tokens `ends` ends an answer. An answer has at least `least_tokens`, its end token included. It
    begins with the tokens `forced`.
    """

    message: Constraint
    ends: Sequence[int]
    least_tokens: int
    forced: Sequence[int]


class Constraints:
    """The constraints of one model's answers."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, run: Run) -> None:
        """`vocab_size` is the model's, and `run` runs what takes long in a thread."""
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._run = run
        self._compiler: Compiler | None = None
        self._texts: list[bytes] | None = None
        self._made: WeakKeyDictionary[Compiled, Enforced] = WeakKeyDictionary()

    async def enforced(self, constraint: kinds.Constraint, end_tokens: Sequence[int]) -> Enforced:
        """Returns the constraint for the worker, whose checkpoint has the end tokens `end_tokens`.

        Raises ConstraintError, with the tool and the path to blame, if it cannot be enforced.
        """
        ends = self._ends(end_tokens)
        if self._compiler is None:
            self._compiler = Compiler(self._trie, ends, self._run)
        compiled = await self._compiler.compiled(constraint)
        if compiled not in self._made:
            self._made[compiled] = await self._run(
                self._enforced, compiled, ends, constraint.thought
            )
        return self._made[compiled]

    async def first_messages(self, end_tokens: Sequence[int]) -> list[Texts]:
        """Returns what each worker must have before its first request, for grammars.

        Its checkpoint has the end tokens `end_tokens`. Without any, no grammar can be enforced.
        """
        ends = self._ends(end_tokens)
        if not ends:
            return []
        if self._texts is None:
            self._texts = await self._run(self._all_texts)
        return [Texts(self._texts, ends)]

    async def close(self) -> None:
        """End what compiles."""
        if self._compiler is not None:
            await self._compiler.close()

    def _ends(self, end_tokens: Sequence[int]) -> list[int]:
        chat_ends = self._vocabulary.control_ids(ANSWER_ENDS)
        return sorted({each for each in (*end_tokens, *chat_ends) if each < self._vocab_size})

    def _trie(self) -> TokenTrie:
        return token_trie(self._vocabulary, self._vocab_size)

    def _all_texts(self) -> list[bytes]:
        texts = token_texts(self._vocabulary, self._vocab_size)
        return [texts.get(token, b"") for token in range(self._vocab_size)]

    def _enforced(
        self, compiled: Compiled, ends: Sequence[int], thought: kinds.Thought
    ) -> Enforced:
        forced = compiled.forced.tokens(self._vocabulary.encode_literally)
        if compiled.automaton is not None:
            automaton = compiled.automaton
            message = Constraint(automaton.hash, automaton.to_bytes())
            return Enforced(message, ends, compiled.least_tokens, forced)
        assert compiled.grammar is not None
        names = {"none": (), "open": (CHANNEL_END,), "allowed": (CHANNEL, CHANNEL_END)}[thought]
        markers = self._vocabulary.control_ids(names)
        name = hashlib.blake2b(f"{markers} {compiled.grammar}".encode(), digest_size=16).hexdigest()
        message = Constraint(name, grammar=compiled.grammar, thought=markers)
        return Enforced(message, ends, compiled.least_tokens, forced)
