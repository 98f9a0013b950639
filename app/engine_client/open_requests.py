"""The open requests, and which of them the worker has. This is bookkeeping without I/O.

A request outlives the worker. The next worker gets it together with the part of the answer that was
already delivered, and continues it with the same noise. A request during which the worker dies
twice, without a block in between, fails.

If a worker dies that had several requests, it is unknown which of them caused it. All of them
become suspects, and the next worker gets them one by one: each when the suspect before it has
delivered a block or ended. So a request that kills the worker again does so alone.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from engine.messages import Block, Done, Failed, GenerateRequest

MOST_DEATHS = 2  # of workers that had the request, without a block in between

Answer = Block | Done | Failed


@dataclass
class OpenRequest:
    """One request and its answer so far."""

    request: GenerateRequest
    answers: asyncio.Queue[Answer] = field(default_factory=asyncio.Queue)
    given: bool = False  # to the living worker
    deaths: int = 0  # of workers that had this request, since its last block
    cancelled: bool = False  # its client is gone; its terminal message has yet to come


class OpenRequests:
    """All open requests, in the order of arrival. Each gets exactly one terminal message."""

    def __init__(self) -> None:
        self._open: dict[str, OpenRequest] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def priorities(self) -> list[int]:
        """Returns the priority of each open request."""
        return [each.request.sampling.priority for each in self._open.values()]

    def add(self, request: GenerateRequest) -> OpenRequest:
        """Add a new request, which waits to be given to the worker."""
        opened = self._open[request.id] = OpenRequest(request)
        return opened

    def due(self) -> Iterator[GenerateRequest]:
        """Yields the requests to give to the living worker now, and marks them as given."""
        on_trial = any(each.given and each.deaths for each in self._open.values())
        for opened in self._open.values():
            if opened.given or (opened.deaths and on_trial):
                continue
            on_trial = on_trial or opened.deaths > 0
            opened.given = True
            yield opened.request

    def deliver(self, message: Answer) -> None:
        """Pass on the worker's message about a request. An unknown id is ignored."""
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
        """Cancel a request. Returns whether the worker has it and must get a `Cancel`."""
        opened = self._open.get(request_id)
        if opened is None:
            return False
        if not opened.given:
            del self._open[request_id]
            return False
        opened.cancelled = True
        return True

    def worker_died(self) -> None:
        """Mark all requests as not given. Those that are cancelled or saw two deaths end here."""
        for request_id, opened in list(self._open.items()):
            opened.deaths += opened.given
            opened.given = False
            if opened.cancelled:
                self.deliver(Done(request_id, "cancelled"))
            elif opened.deaths >= MOST_DEATHS:
                why = "The worker died twice while it had this request."
                self.deliver(Failed(request_id, why, "worker_died"))

    def fail_all(self, why: str) -> None:
        """Fail all requests, because there will be no further worker."""
        for request_id in list(self._open):
            self.deliver(Failed(request_id, why))
