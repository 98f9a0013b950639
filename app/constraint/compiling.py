"""Compiles a constraint: into an automaton where that is possible, else for the frontier method."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.chat_format.gemma import CALL, CALL_END, CHANNEL, CHANNEL_END, QUOTE
from app.constraint import kinds
from app.constraint.alternatives import with_any_of
from app.constraint.characters import utf8
from app.constraint.classes import FIRST_CONTROL, automaton
from app.constraint.expressions import (
    NEVER,
    Embedded,
    Expression,
    any_of,
    optional,
    repeated,
    sequence,
    symbols,
    word,
)
from app.constraint.limits import (
    AmbiguousError,
    ConstraintError,
    Effort,
    LateError,
    NoWayError,
    TooLargeError,
)
from app.constraint.machines import Machine, machine
from app.constraint.patterns import whole_match
from app.constraint.schema import Depths, object_expression, schema_expression
from app.constraint.texts import CallText, JsonText, Text, control
from app.constraint.tokens import TokenTrie
from engine.constraint.automaton import UNREACHABLE, Automaton
from engine.constraint.grammar import grammar_fault, lark_grammar, schema_grammar

_MOST_FORCED = 10_000  # bytes of one text
# The keywords of a tool's schema that only lists its properties.
_LISTING = {"type", "properties", "required", "title", "description", "$schema", "$id", "$comment"}
_ANY_OBJECT = '{"additionalProperties": true}'
OBJECT_DEPTH = 5  # of `json_object`
# The first of these that makes an automaton which is not too large.
_DEPTHS = (Depths(6, 3, 4_000), Depths(6, 1), Depths(2, 1))


@dataclass(frozen=True)
class Forced:
    """What every answer begins with: pieces of text, and ids of control tokens.

    If it is not the `whole` answer, its last text may be the beginning of a longer token.
    """

    pieces: tuple[str | int, ...] = ()
    whole: bool = False

    def tokens(self, encode: Callable[[str], Sequence[int]]) -> list[int]:
        """Returns the tokens of it that can be told already. `encode` returns those of a text."""
        tokens: list[int] = []
        for index, piece in enumerate(self.pieces):
            if isinstance(piece, int):
                tokens.append(piece)
                continue
            own = encode(piece)
            last = index == len(self.pieces) - 1 and not self.whole
            tokens += own[:-1] if last else own
        return tokens


@dataclass(frozen=True, eq=False)
class Compiled:
    """A constraint that can be enforced: by an automaton, or by a grammar in llguidance's form.

    A grammar holds for what follows a thought, of which it knows nothing.
    """

    automaton: Automaton | None
    grammar: str | None = None
    forced: Forced = Forced()

    @property
    def least_tokens(self) -> int:
        """Returns the length of the shortest answer in tokens with its end token.

        Of a grammar, only that there is an end token is known.
        """
        return 1 if self.automaton is None else self.automaton.least_tokens


def compiled(
    constraint: kinds.Constraint,
    trie: TokenTrie,
    ends: Sequence[int],
    most_seconds: float | None = None,
) -> Compiled:
    """Returns a constraint for answers that any of the tokens `ends` ends.

    An attempt that takes too long is followed by one at a smaller automaton. But if `most_seconds`
    of a processor are given, an attempt that takes longer raises LateError.

    Raises ConstraintError with the path of the part of a schema that is to blame, and its tool.
    """
    kind = constraint.kind
    if isinstance(kind, kinds.Grammar):
        return _by_grammar(lark_grammar(kind.lark))
    has_depths = not isinstance(kind, kinds.JsonObject | kinds.Pattern | kinds.OneOf)
    attempts = [*_DEPTHS] if has_depths else [Depths(0, 0)]
    while attempts:
        depths = attempts.pop(0)
        effort = Effort(depths.most_states, most_seconds)
        try:
            return _by_automaton(constraint, depths, trie, ends, effort)
        except TooLargeError as error:
            if most_seconds is not None and isinstance(error, LateError):
                raise
            fault: NoWayError = error
            attempts = [each for each in attempts if not _is_equal(each, depths, effort)]
        except AmbiguousError as error:
            fault = error
            attempts = [replace(each, counted=False) for each in (depths, *attempts)]
        except NoWayError as error:
            fault = error
            break
    if isinstance(kind, kinds.JsonSchema):
        grammar = _grammar(kind.schema, most_seconds)
        if grammar_fault(grammar) is None:
            return _by_grammar(grammar)
    loose = _loosened(kind)
    if loose != kind:
        return compiled(replace(constraint, kind=loose), trie, ends, most_seconds)
    raise fault


def _is_equal(attempt: Depths, failed: Depths, effort: Effort) -> bool:
    """Returns whether an attempt would make the same automaton as one that failed."""
    return (
        effort.is_written
        and effort.deepest_reference <= attempt.references
        and replace(attempt, references=failed.references) == failed
    )


def _grammar(schema: str, most_seconds: float | None) -> str:
    """Returns the grammar of a schema. Raises LateError if `most_seconds` are given and over."""
    try:
        root = with_any_of(json.loads(schema), Effort(most_seconds=most_seconds))
    except LateError:
        if most_seconds is not None:
            raise
        return schema_grammar(schema)
    return schema_grammar(json.dumps(root))


def _loosened(kind: kinds.Kind) -> kinds.Kind:
    """Returns the kind with any object as the arguments of tools that are not strict."""
    if not isinstance(kind, kinds.Calls | kinds.TextOrCalls):
        return kind
    tools = tuple(
        tool if tool.strict or tool.schema is None else replace(tool, schema=_ANY_OBJECT)
        for tool in kind.tools
    )
    return replace(kind, tools=tools)


def _by_grammar(grammar: str) -> Compiled:
    fault = grammar_fault(grammar)
    if fault is not None:
        raise ConstraintError(fault)
    return Compiled(None, grammar)


def _by_automaton(
    constraint: kinds.Constraint,
    depths: Depths,
    trie: TokenTrie,
    ends: Sequence[int],
    effort: Effort,
) -> Compiled:
    try:
        expression = _expression(constraint.kind, depths, trie.controls, effort)
        effort.is_written = True
        whole = machine(_behind_thought(expression, constraint.thought, trie), effort)
    except RecursionError:
        raise TooLargeError("it is nested too deeply") from None
    if whole.accepts_nothing:
        raise ConstraintError("nothing is valid by it")
    made = automaton(whole, trie, ends, effort)
    if made.least_tokens == UNREACHABLE:
        raise ConstraintError("the model's vocabulary has no text for it")
    return Compiled(made, forced=_forced(whole))


def _expression(
    kind: kinds.Kind, depths: Depths, controls: Mapping[str, int], effort: Effort
) -> Expression:
    match kind:
        case kinds.JsonSchema(schema=schema):
            return schema_expression(json.loads(schema), JsonText(), depths, effort)
        case kinds.JsonObject():
            return object_expression(JsonText(), OBJECT_DEPTH)
        case kinds.Pattern(pattern=pattern):
            return Embedded(whole_match(pattern, effort), utf8)
        case kinds.OneOf(texts=texts):
            effort.take(sum(map(len, texts)))
            return any_of([word(text.encode("utf-8", "replace")) for text in texts])
        case kinds.Calls(tools=tools, least=least, most=most):
            calls = any_of([_call(tool, controls, depths, effort) for tool in tools])
            return repeated(calls, least, most)
        case kinds.TextOrCalls(text=kind, tools=tools, most=most):
            calls = _expression(kinds.Calls(tools, 1, most), depths, controls, effort)
            return any_of([_expression(kind, depths, controls, effort), calls])
        case kinds.TextAndCalls(tools=tools, most=most):
            text = repeated(symbols([(0, 255)]), 0, None)
            thought = sequence(control(CHANNEL, controls), text, control(CHANNEL_END, controls))
            text = repeated(any_of([symbols([(0, 255)]), thought]), 0, None)
            calls = any_of([_loose_call(tool, controls, depths, effort) for tool in tools])
            return sequence(text, repeated(sequence(calls, text), 0, most))
        case kinds.Grammar():
            raise NoWayError("grammars are not regular")


def _call(
    tool: kinds.Callable, controls: Mapping[str, int], depths: Depths, effort: Effort
) -> Expression:
    """Returns a call of a tool with valid arguments, or any if its schema has no way.

    Raises ConstraintError if the tool is strict and has no way, and TooLargeError in any case.
    Either has the tool's name.
    """
    text = CallText(controls)
    try:
        arguments = _arguments(tool, text, depths, effort)
    except ConstraintError as error:
        if tool.strict or isinstance(error, TooLargeError):
            error.tool = tool.name
            raise
        arguments = NEVER
    if arguments is NEVER:
        if tool.strict:
            raise ConstraintError("nothing is valid by it", tool=tool.name)
        arguments = object_expression(text, depths.values)
    head = word(b"call:" + tool.name.encode())
    return sequence(control(CALL, controls), head, arguments, control(CALL_END, controls))


def _arguments(tool: kinds.Callable, text: Text, depths: Depths, effort: Effort) -> Expression:
    """Returns the arguments of a tool: objects that are valid by its schema.

    A tool without a schema has none, nor has one whose schema has `"properties": {}` and nothing
    that could admit others. A tool whose schema does not mention properties may have any.
    """
    schema: Any = {"properties": {}} if tool.schema is None else json.loads(tool.schema)
    if isinstance(schema, dict):
        schema = {"type": "object", **schema}
        lists_none = schema.get("properties") == {} and not schema.get("required")
        if lists_none and schema.keys() <= _LISTING:
            schema["additionalProperties"] = False
    return schema_expression(schema, text, depths, effort)


def _loose_call(
    tool: kinds.Callable, controls: Mapping[str, int], depths: Depths, effort: Effort
) -> Expression:
    """Returns a call of a tool, whose arguments are valid if the tool is strict."""
    if tool.strict:
        return _call(tool, controls, depths, effort)
    inner = any_of([symbols([(0, 255)]), control(QUOTE, controls)])
    return sequence(
        control(CALL, controls),
        word(b"call:" + tool.name.encode() + b"{"),
        repeated(inner, 0, None),
        control(CALL_END, controls),
    )


def _behind_thought(expression: Expression, thought: kinds.Thought, trie: TokenTrie) -> Expression:
    if thought == "none":
        return expression
    text = repeated(symbols([(0, 255)]), 0, None)
    end = sequence(control(CHANNEL_END, trie.controls), optional(word(b"\n")))
    if thought == "open":
        return sequence(text, end, expression)
    return sequence(optional(sequence(control(CHANNEL, trie.controls), text, end)), expression)


def _forced(whole: Machine) -> Forced:
    """Returns what every sequence of symbols that a machine accepts begins with."""
    pieces: list[str | int] = []
    text = bytearray()
    state = 0
    while not whole.accepting[state] and len(whole.edges[state]) == 1:
        low, high, target = whole.edges[state][0]
        if low != high or len(text) > _MOST_FORCED:
            break
        if low >= FIRST_CONTROL:
            pieces += [text.decode(), low - FIRST_CONTROL] if text else [low - FIRST_CONTROL]
            text.clear()
        else:
            text.append(low)
        state = target
    if text:
        pieces.append(text.decode(errors="ignore"))
    return Forced(tuple(pieces), whole.accepting[state] and not whole.edges[state])
