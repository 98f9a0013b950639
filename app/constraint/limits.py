"""The bounds within which a constraint is compiled, and the errors that refuse one.

ConstraintError (ValueError)     the constraint, or a part of it, cannot be enforced
  NoWayError                     not as an automaton, but perhaps by the frontier method
    TooLargeError                an automaton of it would be too large, or take too long
      LateError                  it takes longer than the time that it was given
    AmbiguousError               it is not clear what is counted, unless lengths are unrolled
"""

import time

MOST_SECONDS = 2.5  # of a processor, for one attempt to compile a constraint
MOST_EXPRESSIONS = 200_000  # states and steps of the automaton before it is deterministic
MOST_STATES = 20_000  # of the automaton that reads bytes
MOST_ENTRIES = 11 * 2**20  # of the table of states and classes
MOST_FUNCTIONS = 2**26  # entries of the functions of all tokens and of their beginnings


class ConstraintError(ValueError):
    """The constraint cannot be enforced.

    `path` names the part of a schema that is to blame, and `tool` the tool whose schema it is.
    """

    def __init__(self, message: str, path: str = "", tool: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.tool = tool


class NoWayError(ConstraintError):
    """No automaton is made for this part. The frontier method may enforce it."""


class TooLargeError(NoWayError):
    """The automaton would be too large, or compiling it takes too long."""


class LateError(TooLargeError):
    """Compiling it takes longer than it may."""


class AmbiguousError(NoWayError):
    """Something is counted in one of several alternatives that begin alike."""


class Effort:
    """How much one attempt to compile a constraint may still cost.

    It may take `most_seconds` of a processor. An automaton that is made meanwhile may have
    `most_states`. `deepest_reference` is how often a reference has referred to itself so far, and
    `is_written` says that no more references come.
    """

    def __init__(self, most_states: int = MOST_STATES, most_seconds: float | None = None) -> None:
        self.most_states = most_states
        self.deepest_reference = 0
        self.is_written = False
        self._most_seconds = MOST_SECONDS if most_seconds is None else most_seconds
        self._deadline = time.thread_time() + self._most_seconds
        self._expressions = MOST_EXPRESSIONS

    def take(self, expressions: int = 1) -> None:
        """Raises TooLargeError if there is no room for so many more states or steps."""
        self._expressions -= expressions
        if self._expressions < 0:
            raise TooLargeError(f"it stands for more than {MOST_EXPRESSIONS} states and steps")
        self.check_time()

    def check_time(self) -> None:
        """Raises LateError if the time is over."""
        if time.thread_time() > self._deadline:
            raise LateError(
                f"compiling it takes longer than {self._most_seconds:g} s of a processor"
            )
