"""Copies the worker's stderr into the front end's log.

The worker logs as text. Warnings of libraries and crashes come through stderr too. The level and
the logger are taken from the worker's lines. Other lines, such as those of a traceback, belong to
the logged line before them if they arrive together with it.
"""

import asyncio
import logging
import re

_MOST_BYTES = 65536  # per read
_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) ([\w.]+): (.*)")
_UNNAMED = "engine"  # the logger of lines that the worker printed instead of logging


async def relay(stderr: asyncio.StreamReader) -> None:
    """Log everything that comes until stderr is closed, as it is when the worker dies."""
    unfinished = b""  # the line that has no end yet
    while True:
        chunk = await stderr.read(_MOST_BYTES)
        text, newline, unfinished = (unfinished + chunk).rpartition(b"\n")
        if not chunk:
            text, unfinished = text + newline + unfinished, b""
        _log(text.decode(errors="replace").splitlines())
        if not chunk:
            return


def _log(lines: list[str]) -> None:
    level, logger, message = logging.WARNING, _UNNAMED, list[str]()
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            message.append(line)
            continue
        _emit(level, logger, message)
        level, logger = logging.getLevelNamesMapping()[match[1]], match[2]
        message = [match[3]]
    _emit(level, logger, message)


def _emit(level: int, logger: str, message: list[str]) -> None:
    if message:
        logging.getLogger(logger).log(level, "%s", "\n".join(message))
