"""Who is in the next pass. Policy only: plain Python, no I/O, no clock of its own, no tensor.

Whoever has the lowest `priority` goes first; of equals, who runs already, then who came first. At
most `max_active` run, the others wait. One that waits takes the place of a running one with a
worse priority, at once, between two denoising steps: that one is parked, and loses nothing. Of
those that run, only the ones with the best priority are in the passes, so the person at the
keyboard has the device while their background jobs hold still.

Nobody starves: who has not been in a pass for `PATIENCE_S` counts as one of the best until it has
been given a block. Each pass encodes at most `prefill_chunk` tokens, so that a long prompt holds up
nobody's denoising steps for long.

Times are seconds of any clock that does not go back.
"""

from dataclasses import dataclass

from engine.schedule.sequence import Pass, Sequence

PATIENCE_S = 30.0


@dataclass
class _Queued:
    """A sequence's place in the order."""

    sequence: Sequence
    arrival: int
    served: float  # when it was last in a pass, or came
    block: int  # its block at that time
    running: bool = False

    @property
    def priority(self) -> int:
        return self.sequence.request.sampling.priority

    def is_aged(self, now: float) -> bool:
        return now - self.served >= PATIENCE_S

    def serve(self, now: float) -> None:
        """It is in a pass. An aged one stays aged until it has got a block."""
        if not self.is_aged(now) or self.sequence.block_index != self.block:
            self.served, self.block = now, self.sequence.block_index


@dataclass(frozen=True)
class Changes:
    """Who has to leave the device and who comes on it, in this order."""

    parked: list[Sequence]
    started: list[Sequence]


class Scheduler:
    """The waiting and the running sequences. Every one added leaves by `remove`, once."""

    def __init__(self, *, prefill_chunk: int, max_active: int, speculate: bool = False) -> None:
        self._prefill_chunk = prefill_chunk
        self._max_active = max_active
        self._speculate = speculate
        self._queued: dict[Sequence, _Queued] = {}
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        return len(self._queued) - self.running

    @property
    def running(self) -> int:
        return sum(each.running for each in self._queued.values())

    def add(self, sequence: Sequence, now: float) -> None:
        self._queued[sequence] = _Queued(sequence, self._arrivals, now, sequence.block_index)
        self._arrivals += 1

    def find(self, request_id: str) -> Sequence | None:
        """The sequence of this request, if it has not ended."""
        return next((s for s in self._queued if s.request.id == request_id), None)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, whether it ran or waited."""
        del self._queued[sequence]

    def shrink(self, max_active: int) -> None:
        """From now on no more than so many run: the device has no memory for more."""
        self._max_active = max_active

    def rearrange(self, now: float) -> Changes:
        """Decide who runs."""
        rank = self._ranks(now)
        order = sorted(
            self._queued.values(), key=lambda p: (rank[p.sequence], not p.running, p.arrival)
        )
        chosen, rest = order[: self._max_active], order[self._max_active :]
        changes = Changes(
            parked=[each.sequence for each in rest if each.running],
            started=[each.sequence for each in chosen if not each.running],
        )
        for each in order:
            each.running = False
        for each in chosen:
            each.running = True
        return changes

    def next_pass(self, now: float) -> Pass:
        """What the model should do now for those who run; nothing if nobody does."""
        rank = self._ranks(now)
        running = [each for each in self._queued.values() if each.running]
        best = min((rank[each.sequence] for each in running), default=0)
        works: Pass = []
        room = self._prefill_chunk
        for each in running:  # in the order of arrival
            if rank[each.sequence] != best:
                continue
            each.serve(now)
            work = each.sequence.next_work(room, speculate=self._speculate)
            if work is not None:
                works.append(work)
                room = max(0, room - len(work.tokens))  # an image may have taken more
        return works

    def _ranks(self, now: float) -> dict[Sequence, int]:
        """Each one's priority, of the aged ones the best of all."""
        best = min((each.priority for each in self._queued.values()), default=0)
        return {
            each.sequence: best if each.is_aged(now) else each.priority
            for each in self._queued.values()
        }
