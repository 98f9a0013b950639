"""Who is in the next pass. Policy only: plain Python, no I/O, no clock, no tensor.

Requests run by priority, then in arrival order, at most `max_active` together; the others wait.
Each pass encodes at most `prefill_chunk` tokens, or one image that has more, so that a long prompt
holds up nobody's denoising steps for long.
"""

from engine.sequence import Pass, Sequence


class Scheduler:
    """The waiting and the running sequences. Every one added leaves by `remove`, once."""

    def __init__(self, *, prefill_chunk: int, max_active: int, speculate: bool = False) -> None:
        self._prefill_chunk = prefill_chunk
        self._max_active = max_active
        self._speculate = speculate
        self._waiting: list[Sequence] = []  # in arrival order
        self._running: list[Sequence] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def find(self, request_id: str) -> Sequence | None:
        """The sequence of this request, if it has not ended."""
        everyone = [*self._running, *self._waiting]
        return next((s for s in everyone if s.request.id == request_id), None)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, whether it ran or waited."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)

    def start_waiting(self) -> list[Sequence]:
        """Let those run for whom there is room, the lowest priority first; gives them."""
        room = self._max_active - len(self._running)
        # A stable sort: those of one priority stay in arrival order.
        started = sorted(self._waiting, key=lambda s: s.request.sampling.priority)[:room]
        for sequence in started:
            self._waiting.remove(sequence)
        self._running += started
        return started

    def next_pass(self) -> Pass:
        """What the model should do now for those who run; nothing if nobody does."""
        works: Pass = []
        room = self._prefill_chunk
        for sequence in self._running:
            work = sequence.next_work(room, speculate=self._speculate)
            if work is not None:
                works.append(work)
                room = max(0, room - len(work.tokens))  # an image may have taken more
        return works
