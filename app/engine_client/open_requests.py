"""The open requests, and which of them the worker has. This is bookkeeping without I/O.

A request outlives the worker. The next worker gets it together with the part of the answer that was
already delivered, and continues it with the same noise. A request during which the worker dies
twice, without a block in between, fails.

If a worker dies, only the requests in its pass can be the cause, and those that it had not yet
taken in. They become suspects. The next worker gets them first, one by one and each alone: until a
suspect has ended, the worker has no other request. So a request that kills the worker again does so
alone, and one that kills it only together with others does not.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from engine.constraint.thoughts import Thoughts
from engine.messages import (
    Block,
    Cancelled,
    Constraint,
    Draft,
    Failed,
    GenerateRequest,
    Heartbeat,
)

MOST_DEATHS = 2  # of workers that had the request, without a block in between

Answer = Draft | Block | Cancelled | Failed


def is_last(answer: Answer) -> bool:
    """Returns whether this is a request's terminal message."""
    match answer:
        case Draft():
            return False
        case Block():
            return answer.finish_reason is not None
        case Cancelled() | Failed():
            return True


@dataclass
class OpenRequest:
    """One request and its answer so far."""

    request: GenerateRequest
    constraint: Constraint | None = None  # the one that it names
    answers: asyncio.Queue[Answer] = field(default_factory=asyncio.Queue)
    given: int = 0  # its number among the requests given to the living worker; 0: not given yet
    suspect: bool = False  # was in the pass in which a worker died
    deaths: int = 0  # of workers that it may have caused, since its last block
    cancelled: bool = False  # its client is gone; its terminal message has yet to come

    @property
    def may_think(self) -> bool:
        """Returns whether a thought is open, or the answer has said nothing yet."""
        if self.request.thought is None:
            return False
        thoughts = Thoughts(self.request.thought, self.request.max_tokens)
        state = thoughts.after(thoughts.start, self.request.delivered)
        return state.open or not state.spoken

    def end_thought(self) -> None:
        """Leave no tokens to the answer's thoughts, whichever worker makes it."""
        assert self.request.thought is not None
        thought = msgspec.structs.replace(self.request.thought, ended=True)
        self.request = msgspec.structs.replace(self.request, thought=thought)


class OpenRequests:
    """All open requests, in the order of arrival. Each gets exactly one terminal message."""

    def __init__(self) -> None:
        self._open: dict[str, OpenRequest] = {}
        self._given = 0  # to the living worker
        self._beat = Heartbeat([], 0)  # the living worker's last one

    def __len__(self) -> int:
        return len(self._open)

    @property
    def priorities(self) -> list[int]:
        """Returns the priority of each open request."""
        return [each.request.sampling.priority for each in self._open.values()]

    def add(self, request: GenerateRequest, constraint: Constraint | None = None) -> OpenRequest:
        """Add a new request, which waits to be given to the worker with the constraint it names."""
        opened = self._open[request.id] = OpenRequest(request, constraint)
        return opened

    def choices(self, answer_id: str) -> list[OpenRequest]:
        """Returns the open choices of an answer, whose ids begin with the answer's."""
        return [
            each
            for each in self._open.values()
            if each.request.id.startswith(f"{answer_id}-") and not each.cancelled
        ]

    def constraint(self, request_id: str) -> Constraint | None:
        """Returns the constraint that the worker must have before it gets this open request."""
        return self._open[request_id].constraint

    def due(self) -> Iterator[GenerateRequest]:
        """Yields the requests to give to the living worker now, and marks them as given."""
        due = [each for each in self._open.values() if not each.given]
        suspects = [each for each in self._open.values() if each.suspect]
        if suspects:
            due = [] if any(each.given for each in self._open.values()) else suspects[:1]
        for opened in due:
            self._given += 1
            opened.given = self._given
            yield opened.request

    def beat(self, heartbeat: Heartbeat) -> None:
        """Note what the living worker is doing."""
        self._beat = heartbeat

    @property
    def unanswered(self) -> list[str]:
        """Returns the ids of the requests whose `Cancel` the worker has not answered yet."""
        return [each.request.id for each in self._open.values() if each.cancelled]

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
        if is_last(message):
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
        given = [each for each in self._open.values() if each.given]
        in_pass = set(self._beat.in_pass)
        # If none of them is, the worker's last heartbeat was lost with it.
        suspects = [
            each for each in given if each.request.id in in_pass or each.given > self._beat.accepted
        ] or given
        for opened in suspects:
            opened.suspect = True
            opened.deaths += 1
        self._given, self._beat = 0, Heartbeat([], 0)
        for request_id, opened in list(self._open.items()):
            opened.given = 0
            if opened.cancelled:
                self.deliver(Cancelled(request_id))
            elif opened.deaths >= MOST_DEATHS:
                why = "The worker died twice while it had this request."
                self.deliver(Failed(request_id, why, "worker_died"))

    def fail_all(self, why: str) -> None:
        """Fail all requests, because there will be no further worker."""
        for request_id in list(self._open):
            self.deliver(Failed(request_id, why))
