"""The requests that are open, and which of them the worker has: bookkeeping, no I/O.

A request outlives the worker: what it has been given of an answer goes with it to the next one,
which continues there with the same noise. Whoever kills a worker twice is given up. Which of
several that was cannot be seen from here, so after a death those that the worker had are suspects
and go to the next one by one, each when the one before has shown a block or ended: the one that
kills then does so alone.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from engine.messages import Block, Done, Failed, GenerateRequest

MOST_DEATHS = 2  # of workers, with no block in between

Answer = Block | Done | Failed


@dataclass
class OpenRequest:
    """One request and its answer so far."""

    request: GenerateRequest
    answers: asyncio.Queue[Answer] = field(default_factory=asyncio.Queue)
    given: bool = False  # to the worker that is alive now
    deaths: int = 0  # of workers that had it, since its last block
    cancelled: bool = False  # nobody waits for more; its terminal message has yet to come


class OpenRequests:
    """Everyone who waits for an answer, in the order of arrival. Each ends exactly once."""

    def __init__(self) -> None:
        self._open: dict[str, OpenRequest] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, request: GenerateRequest) -> OpenRequest:
        """A new request, which waits to be given to the worker."""
        opened = self._open[request.id] = OpenRequest(request)
        return opened

    def due(self) -> Iterator[GenerateRequest]:
        """Those that a living worker is to be given now; they count as given."""
        on_trial = any(each.given and each.deaths for each in self._open.values())
        for opened in self._open.values():
            if opened.given or (opened.deaths and on_trial):
                continue
            on_trial = on_trial or opened.deaths > 0
            opened.given = True
            yield opened.request

    def deliver(self, message: Answer) -> None:
        """What the worker says about a request goes to whoever waits for it."""
        opened = self._open.get(message.id)
        if opened is None:
            return
        if isinstance(message, Block):
            opened.deaths = 0
            opened.request = msgspec.structs.replace(
                opened.request,
                delivered=[*opened.request.delivered, *message.tokens],
                delivered_blocks=message.index + 1,
            )
        else:
            del self._open[message.id]
        opened.answers.put_nowait(message)

    def cancel(self, request_id: str) -> bool:
        """Nobody waits for this one any more; whether the worker has to be told."""
        opened = self._open.get(request_id)
        if opened is None:
            return False
        if not opened.given:
            del self._open[request_id]
            return False
        opened.cancelled = True
        return True

    def worker_died(self) -> None:
        """No worker has any of them now. Those that have seen too many die end here."""
        for request_id, opened in list(self._open.items()):
            opened.deaths += opened.given
            opened.given = False
            if opened.cancelled:
                self.deliver(Done(request_id, "cancelled"))
            elif opened.deaths >= MOST_DEATHS:
                self.deliver(Failed(request_id, "The worker died twice of this request."))

    def fail_all(self, why: str) -> None:
        """There will be no worker for them."""
        for request_id in list(self._open):
            self.deliver(Failed(request_id, why))
