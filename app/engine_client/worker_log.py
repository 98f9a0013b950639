"""Copies the worker's stdout and stderr, which share one pipe, into the front end's log.

The worker logs as text. Warnings of libraries and crashes come through the pipe too. The level and
the logger are taken from the worker's lines. Other lines, such as those of a traceback, belong to
the logged line before them if they arrive together with it. A line of the level CRITICAL says why
the worker ends.
"""

import asyncio
import logging
import re
from typing import NamedTuple

_MOST_BYTES = 65536  # per read
_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) ([\w.]+): (.*)")
_UNNAMED = "engine"  # the logger of lines that the worker printed instead of logging


async def relay(output: asyncio.StreamReader) -> str | None:
    """Log everything that comes until the pipe is closed, as it is when the worker dies.

    Returns the reason that the worker has given for its end, in one line, or None if it gave none.
    """
    unfinished = b""  # the line that has no end yet
    reason = None
    while True:
        chunk = await output.read(_MOST_BYTES)
        text, newline, unfinished = (unfinished + chunk).rpartition(b"\n")
        if not chunk:
            text, unfinished = text + newline + unfinished, b""
        for record in _records(text.decode(errors="replace").splitlines()):
            logging.getLogger(record.logger).log(record.level, "%s", "\n".join(record.lines))
            if record.level == logging.CRITICAL:
                reason = record.lines[0]
        if not chunk:
            return reason


class _Record(NamedTuple):
    level: int
    logger: str
    lines: list[str]


def _records(lines: list[str]) -> list[_Record]:
    records: list[_Record] = []
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is not None:
            level = logging.getLevelNamesMapping()[match[1]]
            records.append(_Record(level, match[2], [match[3]]))
        elif records:
            records[-1].lines.append(line)
        else:
            records.append(_Record(logging.WARNING, _UNNAMED, [line]))
    return records
