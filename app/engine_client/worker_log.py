"""What the worker writes to stderr, as lines of the front end's own log.

The worker logs as text, and whatever else it says, a library's warning or a crash, comes the same
way. Level and logger are taken from its lines; what follows a line in the same breath, such as a
traceback, belongs to it.
"""

import asyncio
import logging
import re

_MOST_BYTES = 65536  # read at once
_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) ([\w.]+): (.*)")
_UNNAMED = "engine"  # the logger of what the worker did not log but print


async def relay(stderr: asyncio.StreamReader) -> None:
    """Log what comes until the worker has closed it, which its death does."""
    rest = b""
    while True:
        came = await stderr.read(_MOST_BYTES)
        text, newline, rest = (rest + came).rpartition(b"\n")
        if not came:
            text, rest = text + newline + rest, b""
        _log(text.decode(errors="replace").splitlines())
        if not came:
            return


def _log(lines: list[str]) -> None:
    level, logger, said = logging.WARNING, _UNNAMED, list[str]()
    for line in lines:
        begun = _LINE.fullmatch(line)
        if begun is None:
            said.append(line)
            continue
        _emit(level, logger, said)
        level, logger = logging.getLevelNamesMapping()[begun[1]], begun[2]
        said = [begun[3]]
    _emit(level, logger, said)


def _emit(level: int, logger: str, said: list[str]) -> None:
    if said:
        logging.getLogger(logger).log(level, "%s", "\n".join(said))
