"""How fast answers end while there is a queue: how long one that is turned away has to wait."""

from dataclasses import dataclass

_FIRST_GUESS_S = 1.0
_NEWEST = 0.2  # an end's share in the average


@dataclass
class ServiceRate:
    """The average time between two ends. Times are seconds of a clock that does not go back."""

    _interval_s: float | None = None
    _last_end: float | None = None

    def ended(self, now: float, *, others: int) -> None:
        """A request has ended, and so many others are open."""
        if self._last_end is not None:
            took = now - self._last_end
            before = took if self._interval_s is None else self._interval_s
            self._interval_s = before + _NEWEST * (took - before)
        # With nobody left, the time until the next end is not the device's.
        self._last_end = now if others else None

    def wait_s(self, ends: int) -> float:
        """About how long until so many more have ended."""
        return max(ends, 1) * (_FIRST_GUESS_S if self._interval_s is None else self._interval_s)
