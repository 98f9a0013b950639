"""Decides when a worker hangs. Plain Python, without a clock and without I/O.

The worker's loop sends a heartbeat before its passes, from the same thread that runs them, and at
least once a second while it waits. So a worker hangs if nothing comes from it for longer than its
current pass can take, or if it goes on without answering a `Cancel`, which it reads between two
passes. A worker that is still loading is not judged: compiling and downloading take any time.
"""

from collections.abc import Collection

from engine.messages import FromWorker, Heartbeat, Ready

_FIRST_PASS = 5  # times the allowed silence: the first pass of its size compiles and captures
_LONGER = 10  # times as long as earlier passes of its size have taken


class Watch:
    """What is known of one worker process: how long it has been silent, and what it owes."""

    def __init__(self, silence_s: float) -> None:
        self.was_ready = False
        self._silence_s = silence_s
        self._silent_s = 0.0
        self._unanswered_s: dict[str, float] = {}  # since a `Cancel` was sent, by request id
        self._longest_pass_s: float | None = None

    @property
    def allowed_s(self) -> float:
        """Returns for how long the worker may be silent in its current pass."""
        if self._longest_pass_s is None:
            return _FIRST_PASS * self._silence_s
        return max(self._silence_s, _LONGER * self._longest_pass_s)

    def heard(self, message: FromWorker) -> None:
        """Note a message of the worker."""
        self._silent_s = 0.0
        match message:
            case Ready():
                self.was_ready = True
            case Heartbeat(longest_pass_s=seconds):
                self._longest_pass_s = seconds

    def tick(self, seconds: float, cancelled: Collection[str]) -> str | None:
        """Note that so much time has passed while the front end was running.

        `cancelled` are the ids of the requests whose `Cancel` is not answered yet. Returns why the
        worker counts as hung, or None if it does not.
        """
        if not self.was_ready:
            return None
        self._silent_s += seconds
        self._unanswered_s = {
            each: self._unanswered_s.get(each, 0.0) + seconds for each in cancelled
        }
        if self._silent_s > self.allowed_s:
            return f"it has been silent for {self._silent_s:.0f} s"
        longest_s = max(self._unanswered_s.values(), default=0.0)
        if longest_s > self.allowed_s:
            return f"it has not answered a cancel for {longest_s:.0f} s"
        return None
