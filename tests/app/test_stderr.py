"""The file that stands for stderr while the server runs."""

import fcntl
import logging
import os
from contextlib import contextmanager

import pytest

from app.stderr import UnblockedFile

LINE = "x" * 1023 + "\n"


@contextmanager
def small_pipe():
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield reader, writer
    finally:
        os.close(writer)
        os.close(reader)


def read(descriptor, count):
    """Returns this many bytes."""
    data = b""
    while len(data) < count:
        data += os.read(descriptor, count - len(data))
    return data


def test_text_is_written_in_order():
    with small_pipe() as (reader, writer):
        file = UnblockedFile(writer)
        texts = [f"{number} ä\n" for number in range(100)]
        for text in texts:
            file.write(text)
        file.finish(60)
        assert read(reader, len("".join(texts).encode())).decode() == "".join(texts)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stands_still_delays_no_writer_and_lost_lines_are_counted(caplog, blocking):
    with small_pipe() as (reader, writer):
        os.set_blocking(writer, blocking)
        file = UnblockedFile(writer)
        for _ in range(1500):  # 1.5 MiB, of which 1 MiB may wait
            file.write(LINE)
        read(reader, 1024 * len(LINE))
        with caplog.at_level(logging.WARNING):
            file.finish(60)
            file.write("again\n")
            assert read(reader, 6) == b"again\n"
            file.finish(60)
    assert sum("476 lines of the log are lost" in line for line in caplog.messages) == 1


def test_a_descriptor_that_refuses_text_raises_nothing():
    with open("/dev/full", "wb", buffering=0) as full:
        file = UnblockedFile(full.fileno())
        file.write(LINE)
        file.flush()
        file.finish(60)


def test_lines_that_were_refused_are_reported_when_others_are_written(caplog):
    with small_pipe() as (reader, writer), open("/dev/full", "wb", buffering=0) as full:
        descriptor = os.dup(full.fileno())
        file = UnblockedFile(descriptor)
        file.write("first\nsecond\n")
        file.finish(60)
        os.dup2(writer, descriptor)
        with caplog.at_level(logging.WARNING):
            file.write("third\n")
            assert read(reader, 6) == b"third\n"
            file.finish(60)
        os.close(descriptor)
    assert "2 lines of the log are lost" in caplog.text
