"""Waits for a condition instead of for a time, so that no test depends on how fast a machine is."""

import time
from collections.abc import Callable
from typing import Any

_POLL_S = 0.01


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Poll `condition` until it returns a true value, and return that value.

    Raises AssertionError after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"the condition is still false after {seconds} s"
        time.sleep(_POLL_S)
    return value
