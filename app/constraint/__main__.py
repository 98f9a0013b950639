"""The process that compiles constraints: `python -m app.constraint`.

It reads pickles from stdin and answers on stdout: first a vocabulary with its end tokens, then
constraints, each with the time that it may take. It ends with its stdin. A constraint comes from a
client, so its memory is limited. The pickles are only ever made by this program.
"""

import pickle
import resource
import signal
import sys
from collections.abc import Sequence
from typing import IO

from app.constraint.compiling import Compiled, compiled
from app.constraint.kinds import Constraint
from app.constraint.limits import ConstraintError, TooLargeError
from app.constraint.tokens import TokenTrie

MOST_BYTES = 4 * 2**30
_MOST_FRAMES = 20_000  # of Python, which an expression with many levels takes


def main() -> None:
    """Compile what comes until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process in order
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    sys.setrecursionlimit(_MOST_FRAMES)
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # so that nothing else gets between the answers
    trie, ends = pickle.load(sys.stdin.buffer)
    while True:
        try:
            constraint, most_seconds = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        send(_result(constraint, trie, ends, most_seconds), answers)


def send(value: object, stream: IO[bytes]) -> None:
    """Write a value and how many bytes it has, in eight bytes."""
    data = pickle.dumps(value)
    stream.write(len(data).to_bytes(8) + data)
    stream.flush()


def _result(
    constraint: Constraint, trie: TokenTrie, ends: Sequence[int], most_seconds: float | None
) -> Compiled | Exception:
    try:
        return compiled(constraint, trie, ends, most_seconds)
    except ConstraintError as error:
        return error
    except MemoryError:
        return TooLargeError(f"compiling it takes more than {MOST_BYTES >> 30} GiB of memory")
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
