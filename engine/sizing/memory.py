"""The machine's main memory, as Linux tells it."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_AVAILABLE = "MemAvailable"


def available_ram_bytes() -> int:
    """Returns what a program could still have. Files that the system keeps in memory count as free.

    Raises OSError if the system does not say.
    """
    for line in _MEMINFO.read_text().splitlines():
        key, value = line.split(":")
        if key == _AVAILABLE:
            return int(value.split()[0]) * 1024  # the file says kB and means KiB
    raise OSError(f"{_MEMINFO} has no {_AVAILABLE}")
