"""The machine's main memory, as Linux tells it."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def total_ram_bytes() -> int:
    """All of it."""
    return _read("MemTotal")


def available_ram_bytes() -> int:
    """What a program could still have, files kept in memory included, for they can go."""
    return _read("MemAvailable")


def _read(name: str) -> int:
    for line in _MEMINFO.read_text().splitlines():
        key, value = line.split(":")
        if key == name:
            return int(value.split()[0]) * 1024  # it says kB and means KiB
    raise OSError(f"{_MEMINFO} has no {name}")
