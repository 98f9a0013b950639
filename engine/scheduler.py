"""Who is in the next pass. Policy only: plain Python, no I/O, no clock, no tensor.

One request at a time, in arrival order; the others wait.
"""

from collections import deque

from engine.sequence import Pass, Sequence


class Scheduler:
    """The waiting and the running sequences. Every one added leaves by `remove`, once."""

    def __init__(self, prefill_chunk: int) -> None:
        self._prefill_chunk = prefill_chunk
        self._waiting: deque[Sequence] = deque()
        self._running: Sequence | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return 0 if self._running is None else 1

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def find(self, request_id: str) -> Sequence | None:
        """The sequence of this request, if it has not ended."""
        everyone = [self._running, *self._waiting] if self._running else self._waiting
        return next((s for s in everyone if s.request.id == request_id), None)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, whether it ran or waited."""
        if sequence is self._running:
            self._running = None
        else:
            self._waiting.remove(sequence)

    def next_pass(self) -> Pass | None:
        """What the model should do now; None if nobody wants anything."""
        if self._running is None and self._waiting:
            self._running = self._waiting.popleft()
        return None if self._running is None else self._running.next_pass(self._prefill_chunk)
