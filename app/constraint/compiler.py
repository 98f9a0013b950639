"""Compiles constraints in a process of its own, one after another, and keeps the latest results.

So a constraint that a client made to be expensive costs neither the event loop nor other requests,
except those that wait for a constraint too. It is stopped when it has taken MOST_SECONDS.
"""

import asyncio
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress

from app.constraint.compiling import Compiled
from app.constraint.kinds import Constraint
from app.constraint.limits import ConstraintError, TooLargeError
from app.constraint.tokens import TokenTrie
from app.engine_client.worker_process import child_environment
from app.threads import Run

MOST_SECONDS = 60.0  # of one constraint, while other programs may have the processors
MOST_KEPT = 256
MOST_KEPT_BYTES = 256 * 2**20
_LEAST_BYTES = 2_000  # of what is kept of a constraint that is refused


class Compiler:
    """Compiles the constraints of one model's answers.

    `trie` is called in a thread, by `run`, when the first constraint comes. Any of the tokens
    `ends` ends an answer.
    """

    def __init__(self, trie: Callable[[], TokenTrie], ends: Sequence[int], run: Run) -> None:
        self._trie = trie
        self._ends = tuple(ends)
        self._run = run
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._kept: OrderedDict[Constraint, Compiled | ConstraintError] = OrderedDict()
        self._kept_bytes = 0
        self._compiling: dict[Constraint, asyncio.Task[Compiled | ConstraintError]] = {}

    async def compiled(self, constraint: Constraint) -> Compiled:
        """Returns the constraint as it is sent to the worker.

        Raises ConstraintError if it cannot be enforced, with the path of the part to blame.
        """
        result = self._kept.get(constraint)
        if result is None:
            task = self._compiling.get(constraint)
            if task is None:
                task = asyncio.create_task(self._compile(constraint))
                self._compiling[constraint] = task
                task.add_done_callback(lambda _: self._compiling.pop(constraint))
            # If the request is cancelled, the result is kept for the next one all the same.
            result = await asyncio.shield(task)
        else:
            self._kept.move_to_end(constraint)
        if isinstance(result, ConstraintError):
            raise type(result)(str(result), result.path)
        return result

    async def close(self) -> None:
        """End the process, and drop what it compiles."""
        for task in list(self._compiling.values()):
            task.cancel()
        await self._end()

    async def _compile(self, constraint: Constraint) -> Compiled | ConstraintError:
        async with self._turn:
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    result = await self._exchange(constraint)
            except (TimeoutError, EOFError, OSError) as error:
                await self._end()
                late = isinstance(error, TimeoutError)
                why = f"longer than {MOST_SECONDS:g} s" if late else "more memory than there is"
                result = TooLargeError(f"compiling it takes {why}")
            except BaseException:
                await self._end()
                raise
        if isinstance(result, RuntimeError):
            raise result
        self._keep(constraint, result)
        return result

    async def _exchange(self, constraint: Constraint) -> Compiled | ConstraintError | RuntimeError:
        if self._process is not None and self._process.returncode is not None:
            self._process = None  # something else has ended it
        if self._process is None:
            first = await self._run(lambda: pickle.dumps((self._trie(), self._ends)))
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "app.constraint",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                process_group=0,
                env={**child_environment(), "OPENBLAS_NUM_THREADS": "1"},
            )
            self._write(first)
        self._write(pickle.dumps(constraint))
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        await stdin.drain()
        size = int.from_bytes(await stdout.readexactly(8))
        result: Compiled | ConstraintError | RuntimeError = pickle.loads(
            await stdout.readexactly(size)
        )
        return result

    def _write(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    def _keep(self, constraint: Constraint, result: Compiled | ConstraintError) -> None:
        self._kept[constraint] = result
        self._kept_bytes += _size(result)
        while self._kept_bytes > MOST_KEPT_BYTES or len(self._kept) > MOST_KEPT:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= _size(oldest)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _size(result: Compiled | ConstraintError) -> int:
    if isinstance(result, ConstraintError) or result.automaton is None:
        return _LEAST_BYTES
    automaton = result.automaton
    return automaton.token_class.nbytes + automaton.next_state.nbytes + automaton.need.nbytes
