"""The front end's threads. Each kind of work has its own, so that none waits behind another.

Work that has not begun is dropped when the request that waits for it is cancelled.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_PROMPT_THREADS = 4


class Run(Protocol):
    """Runs a function in a thread and waits for its result."""

    async def __call__(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...


class Pool:
    """A number of threads with one queue."""

    def __init__(self, name: str, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, name)

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns the function's result. It runs with the context of the caller."""
        context = copy_context()
        work = self._executor.submit(lambda: context.run(function, *args, **kwargs))
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Drop what has not begun. Nothing waits for what has."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Threads:
    """The threads that read bodies and make prompts, and those that decode pictures.

    A large body is read, and its prompt is made, while its request holds `large`. So the memory
    that large bodies take is that of one of them.
    """

    def __init__(self) -> None:
        self.prompts = Pool("prompts", _PROMPT_THREADS)
        self.large_prompts = Pool("large-prompts", 1)
        self.large = asyncio.Lock()
        self.pictures = Pool("pictures", 1)  # one at a time: the largest takes 770 MiB

    def close(self) -> None:
        for pool in (self.prompts, self.large_prompts, self.pictures):
            pool.close()
