"""The machine's main memory, as Linux reports it."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def available_ram_bytes() -> int:
    """Returns the bytes that a program can still allocate. The system's file cache counts as free.

    Raises OSError if the system does not report the number.
    """
    return _bytes("MemAvailable")


def total_ram_bytes() -> int:
    """Returns the bytes of the machine's memory and swap together, most of which may be in use.

    Raises OSError if the system does not report the numbers.
    """
    return _bytes("MemTotal") + _bytes("SwapTotal")


def _bytes(key: str) -> int:
    for line in _MEMINFO.read_text().splitlines():
        name, value = line.split(":")
        if name == key:
            return int(value.split()[0]) * 1024  # the file's unit "kB" means KiB
    raise OSError(f"{_MEMINFO} has no {key}")
