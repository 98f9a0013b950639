"""An estimate of how long a refused request has to wait, from how fast answers have ended."""

from dataclasses import dataclass

_FIRST_GUESS_S = 1.0
_NEWEST = 0.2  # the share of the newest interval in the average


@dataclass
class ServiceRate:
    """The average time between the ends of two answers. Times are seconds of a monotonic clock."""

    _interval_s: float | None = None
    _last_end: float | None = None

    def ended(self, now: float, *, others: int) -> None:
        """Record that an answer has ended while `others` answers are open."""
        if self._last_end is not None:
            took = now - self._last_end
            before = took if self._interval_s is None else self._interval_s
            self._interval_s = before + _NEWEST * (took - before)
        # If no answer is open, the time until the next end depends on clients, not on the device.
        self._last_end = now if others else None

    def wait_s(self, ends: int) -> float:
        """Returns about how many seconds it takes until this many more answers have ended."""
        return max(ends, 1) * (_FIRST_GUESS_S if self._interval_s is None else self._interval_s)
