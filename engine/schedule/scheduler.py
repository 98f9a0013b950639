"""Decide which sequences are in the next pass.

This is policy only, in plain Python: no I/O, no clock and no tensor.

At most `max_active` sequences run at a time and the others wait. A sequence with a lower `priority`
runs first. Among equal priorities, running sequences stay, and then the earliest arrival runs. A
waiting sequence replaces a running one with a worse (higher) priority at once, between two
denoising steps. The replaced sequence is parked and loses no work. Only those running sequences
that have the best priority take part in passes, so a person's request has the device to itself
while background jobs pause.

A decision is short: it has one pass or a few. So it does not wait for the blocks of answers of its
own priority: it runs before them, and its tokens and canvases are the first in a pass. It takes
part in the same pass as these answers, unless it needs the place of one of them.

No sequence starves: one that has not been in a pass for `PATIENCE_S` gets the best priority until
it has received a block. Each pass encodes at most `prefill_chunk` tokens, so a long prompt does not
delay the denoising steps of other sequences for long.

Sequences with the same prompt are the choices of one request. One of them encodes the prompt. The
others keep their places, but start only when its KV cache holds the whole prompt, to be copied.

Times are in seconds, by any monotonic clock.
"""

from dataclasses import dataclass

from engine.schedule.sequence import Pass, Sequence

PATIENCE_S = 30.0


@dataclass
class _Queued:
    """A sequence with what decides when it runs."""

    sequence: Sequence
    arrival: int  # a number that rises with each added sequence
    served: float  # when the sequence was last in a pass, or was added
    block: int  # the sequence's block index at that time
    running: bool = False

    @property
    def priority(self) -> int:
        return self.sequence.request.sampling.priority

    @property
    def is_decision(self) -> bool:
        return self.sequence.reading is not None

    def is_aged(self, now: float) -> bool:
        return now - self.served >= PATIENCE_S

    def serve(self, now: float) -> None:
        """Note that the sequence is in a pass. An aged one stays aged until it gets a block."""
        if not self.is_aged(now) or self.sequence.block_index != self.block:
            self.served, self.block = now, self.sequence.block_index


@dataclass(frozen=True)
class Changes:
    """The sequences that leave the device, and those that are then put on it."""

    parked: list[Sequence]
    started: list[Sequence]


class Scheduler:
    """The waiting and the running sequences. Each added sequence must be removed once."""

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
        """Returns the sequence of this request, or None if it has ended or is unknown."""
        return next((s for s in self._queued if s.request.id == request_id), None)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that has ended, whether it was running or waiting."""
        del self._queued[sequence]

    def shrink(self, max_active: int) -> None:
        """Lower the number of sequences that may run, because the device lacks memory for more."""
        self._max_active = max_active

    def rearrange(self, now: float) -> Changes:
        """Decide which sequences run from now on. Returns what changes."""
        rank = self._ranks(now)
        order = sorted(
            self._queued.values(),
            key=lambda p: (
                rank[p.sequence],
                not (p.is_decision or p.is_aged(now)),
                not p.running,
                p.arrival,
            ),
        )
        chosen, others = order[: self._max_active], order[self._max_active :]
        changes = Changes(
            parked=[each.sequence for each in others if each.running],
            started=[],
        )
        for each in others:
            each.running = False
        encoding = {
            each.sequence.prompt_key
            for each in chosen
            if each.running and not each.sequence.prompt_encoded
        }
        for each in chosen:
            if not each.running and each.sequence.prompt_key not in encoding:
                each.running = True
                encoding.add(each.sequence.prompt_key)
                changes.started.append(each.sequence)
        return changes

    def next_pass(self, now: float) -> Pass:
        """Returns the next pass for the running sequences. It is empty if there is nothing to do.

        The running sequences with the best priority count as served at `now`.
        """
        rank = self._ranks(now)
        running = [each for each in self._queued.values() if each.running]
        best = min((rank[each.sequence] for each in running), default=0)
        taking_part = [each for each in running if rank[each.sequence] == best]
        works: Pass = []
        room = self._prefill_chunk
        spare = self._max_active - len(taking_part)  # each sequence may have one canvas
        # Decisions first, then in order of arrival.
        for each in sorted(taking_part, key=lambda each: not each.is_decision):
            each.serve(now)
            work = each.sequence.next_work(room, speculate=self._speculate, most_canvases=1 + spare)
            if work is not None:
                works.append(work)
                room = max(0, room - work.encoded_tokens)  # an image may exceed the chunk
                spare -= max(0, len(work.reads) - 1)
        return works

    def _ranks(self, now: float) -> dict[Sequence, int]:
        """Returns the priority of each sequence. Aged sequences get the best priority of all."""
        best = min((each.priority for each in self._queued.values()), default=0)
        return {
            each.sequence: best if each.is_aged(now) else each.priority
            for each in self._queued.values()
        }
