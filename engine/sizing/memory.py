"""The machine's main memory, as Linux reports it."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN = Path("/proc/self/status")


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


def resident_bytes() -> int:
    """Returns the bytes of memory that this process takes, files that it has mapped included.

    Raises OSError if the system does not report the number.
    """
    return _bytes("VmRSS", _OWN)


def _bytes(key: str, file: Path | None = None) -> int:
    file = file or _MEMINFO
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024  # the file's unit "kB" means KiB
    raise OSError(f"{file} has no {key}")
