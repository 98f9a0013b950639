"""The machine's main memory, as Linux reports it."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_AVAILABLE = "MemAvailable"


def available_ram_bytes() -> int:
    """Returns the bytes that a program can still allocate. The system's file cache counts as free.

    Raises OSError if the system does not report the number.
    """
    for line in _MEMINFO.read_text().splitlines():
        key, value = line.split(":")
        if key == _AVAILABLE:
            return int(value.split()[0]) * 1024  # the file's unit "kB" means KiB
    raise OSError(f"{_MEMINFO} has no {_AVAILABLE}")
