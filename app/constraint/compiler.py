"""Compiles constraints in two processes of their own, and keeps the latest results.

A constraint that a client made to be expensive costs neither the event loop nor requests without a
constraint. Nor do many constraints wait behind it: each is first compiled in a process that gives
up after QUICK_SECONDS. One that takes longer is compiled in the other process, together with its
like, until it has taken MOST_SECONDS.
"""

import asyncio
import pickle
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from app.constraint.compiling import Compiled
from app.constraint.kinds import Constraint
from app.constraint.limits import ConstraintError, LateError, TooLargeError
from app.constraint.tokens import TokenTrie
from app.engine_client.worker_process import child_environment
from app.threads import Run

QUICK_SECONDS = 0.5  # of a processor, for each attempt at a constraint in the first process
MOST_SECONDS = 60.0  # of one constraint, while other programs may have the processors
MOST_KEPT = 256
MOST_KEPT_BYTES = 256 * 2**20
_LEAST_BYTES = 2_000  # of what is kept of a constraint that is refused

Result = Compiled | ConstraintError


class Compiler:
    """Compiles the constraints of one model's answers.

    `trie` is called in a thread, by `run`, when the first constraint comes. Any of the tokens
    `ends` ends an answer.
    """

    def __init__(self, trie: Callable[[], TokenTrie], ends: Sequence[int], run: Run) -> None:
        self._trie = trie
        self._ends = tuple(ends)
        self._run = run
        self._first: bytes | None = None
        self._reading = asyncio.Lock()
        self.quick = CompilingProcess(self._vocabulary)
        self.slow = CompilingProcess(self._vocabulary)
        self._kept: OrderedDict[Constraint, Result] = OrderedDict()
        self._kept_bytes = 0
        self._compiling: dict[Constraint, asyncio.Task[Result]] = {}

    async def compiled(self, constraint: Constraint) -> Compiled:
        """Returns the constraint as it is sent to the worker.

        Raises ConstraintError if it cannot be enforced, with the tool and the path to blame.
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
            raise type(result)(str(result), result.path, result.tool)
        return result

    async def close(self) -> None:
        """End the processes, and drop what they compile."""
        for task in list(self._compiling.values()):
            task.cancel()
        await self.quick.end()
        await self.slow.end()

    async def _compile(self, constraint: Constraint) -> Result:
        result = await self.quick.result(constraint, QUICK_SECONDS)
        if isinstance(result, LateError):
            result = await self.slow.result(constraint)
        self._keep(constraint, result)
        return result

    async def _vocabulary(self) -> bytes:
        """Returns what a process reads before the first constraint."""
        async with self._reading:
            if self._first is None:
                self._first = await self._run(lambda: pickle.dumps((self._trie(), self._ends)))
        return self._first

    def _keep(self, constraint: Constraint, result: Result) -> None:
        self._kept[constraint] = result
        self._kept_bytes += _size(result)
        while self._kept_bytes > MOST_KEPT_BYTES or len(self._kept) > MOST_KEPT:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= _size(oldest)


class CompilingProcess:
    """A process that compiles constraints one after another. It starts with the first one."""

    def __init__(self, vocabulary: Callable[[], Awaitable[bytes]]) -> None:
        """`vocabulary` returns what the process reads first."""
        self._vocabulary = vocabulary
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Returns the id of the process, or None if there is none."""
        return None if self._process is None else self._process.pid

    async def result(self, constraint: Constraint, most_seconds: float | None = None) -> Result:
        """Returns the compiled constraint, or why it cannot be enforced.

        It is a LateError if the process takes longer for it than `most_seconds` of a processor, or
        in any case than MOST_SECONDS.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    result = await self._exchange(constraint, most_seconds)
            except TimeoutError:
                await self.end()
                return LateError(f"compiling it takes longer than {MOST_SECONDS:g} s")
            except (EOFError, OSError):
                await self.end()
                return TooLargeError("compiling it takes more memory than there is")
            except BaseException:
                await self.end()
                raise
        if isinstance(result, RuntimeError):
            raise result
        return result

    async def end(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _exchange(
        self, constraint: Constraint, most_seconds: float | None
    ) -> Result | RuntimeError:
        if self._process is not None and self._process.returncode is not None:
            self._process = None  # something else has ended it
        if self._process is None:
            first = await self._vocabulary()
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
        self._write(pickle.dumps((constraint, most_seconds)))
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        await stdin.drain()
        size = int.from_bytes(await stdout.readexactly(8))
        result: Result | RuntimeError = pickle.loads(await stdout.readexactly(size))
        return result

    def _write(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(data)


def _size(result: Result) -> int:
    if isinstance(result, ConstraintError) or result.automaton is None:
        return _LEAST_BYTES
    automaton = result.automaton
    return automaton.token_class.nbytes + automaton.next_state.nbytes + automaton.need.nbytes
