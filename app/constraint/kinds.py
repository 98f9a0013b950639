"""What a request may demand of its answer. A part of a request is parsed into one of these.

They hold text, are compared by value, and can be sent to the process that compiles them.
"""

from dataclasses import dataclass
from typing import Literal

MOST_CHOICES = 500


@dataclass(frozen=True)
class JsonSchema:
    """A JSON value that is valid by a schema, which is JSON text itself."""

    schema: str


@dataclass(frozen=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True)
class Pattern:
    """A text that a regular expression matches from beginning to end."""

    pattern: str


@dataclass(frozen=True)
class OneOf:
    """One of some texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Grammar:
    """A text of a context-free grammar in Lark's format."""

    lark: str


@dataclass(frozen=True)
class Callable:
    """A tool that may be called. `schema` is that of its arguments, as JSON text.

    If the tool is not strict, and its schema cannot be enforced, any object is an argument.
    """

    name: str
    schema: str | None
    strict: bool


@dataclass(frozen=True)
class Calls:
    """Calls of tools and nothing else: `least` to `most` of them, or more if `most` is None."""

    tools: tuple[Callable, ...]
    least: int = 1
    most: int | None = None


@dataclass(frozen=True)
class TextAndCalls:
    """Text, and at most `most` calls of tools. Those of strict tools have valid arguments."""

    tools: tuple[Callable, ...]
    most: int | None = None


@dataclass(frozen=True)
class TextOrCalls:
    """A text of a certain kind, or calls of tools, of which at most `most` if that is given."""

    text: "Kind"
    tools: tuple[Callable, ...]
    most: int | None = None


Kind = JsonSchema | JsonObject | Pattern | OneOf | Grammar | Calls | TextAndCalls | TextOrCalls

# "open": the prompt ends in a thought. "allowed": the answer may begin with one. The constraint
# holds for what follows the thought.
Thought = Literal["none", "open", "allowed"]


@dataclass(frozen=True)
class Constraint:
    """A constraint of one answer."""

    kind: Kind
    thought: Thought = "none"
