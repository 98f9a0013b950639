"""How long passes take, by their size, so that a pass that hangs can be told from a long one.

Plain Python, without a clock: times are in seconds, by any monotonic clock.
"""

from engine.schedule.sequence import Pass

Size = tuple[int, int, bool]


class PassTimes:
    """The longest time that a pass of each size has taken.

    The first pass of a size may compile or capture something. So its time counts only until the
    second one is known.
    """

    def __init__(self) -> None:
        self._first: dict[Size, float] = {}
        self._longest: dict[Size, float] = {}

    def longest_s(self, works: Pass) -> float | None:
        """Returns the longest time of a pass of this size, or None if there was none yet."""
        size = _size(works)
        return self._longest.get(size, self._first.get(size))

    def record(self, works: Pass, seconds: float) -> None:
        """Record that a pass took so long."""
        size = _size(works)
        if size in self._first:
            self._longest[size] = max(self._longest.get(size, 0.0), seconds)
        else:
            self._first[size] = seconds


def _size(works: Pass) -> Size:
    """Returns the number of canvases, that of tokens to the next power of two, and if it sees."""
    canvases = sum(
        work.denoise + (work.speculation is not None) + len(work.reads) for work in works
    )
    tokens = sum(work.encoded_tokens + len(work.speculation or ()) for work in works)
    return canvases, tokens.bit_length(), any(work.images for work in works)
