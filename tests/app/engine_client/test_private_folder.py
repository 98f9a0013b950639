"""Folders of dead servers are removed, those of living ones stay."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys

import pytest

from app.engine_client.private_folder import PREFIX, PrivateFolder

OWNER = """
import sys
from pathlib import Path
from app.engine_client.private_folder import PrivateFolder
folder = PrivateFolder(Path(sys.argv[1]))
(folder.path / "0.sock").touch()
print(folder.path.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """Yields another process that owns a folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process, tmp_path / process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_only_the_user_can_enter_the_folder(tmp_path):
    folder = PrivateFolder(tmp_path)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_living_server_stays(owner, tmp_path):
    _, theirs = owner
    PrivateFolder(tmp_path).remove()
    assert (theirs / "0.sock").exists()


def test_the_next_start_removes_the_folder_of_a_killed_server(owner, tmp_path):
    process, theirs = owner
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert theirs.exists()
    PrivateFolder(tmp_path).remove()
    assert not theirs.exists()


def test_a_link_with_the_prefix_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(precious)
    PrivateFolder(tmp_path).remove()
    assert (precious / "file").exists()


def test_a_folder_that_was_removed_is_made_anew_with_its_parent(tmp_path):
    parent = tmp_path / "parent"
    parent.mkdir()
    folder = PrivateFolder(parent)
    before = folder.path
    folder.renew()
    assert folder.path == before
    shutil.rmtree(parent)
    folder.renew()
    assert folder.path.is_dir()
    PrivateFolder(parent).remove()  # it does not remove the new folder, which is locked
    assert folder.path.is_dir()
    folder.remove()
    assert list(parent.iterdir()) == []


def test_a_folder_that_cannot_be_opened_is_an_error_and_does_not_stay(tmp_path, monkeypatch):
    def no_descriptors(*_arguments):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", no_descriptors)
    with pytest.raises(OSError, match="Too many open files"):
        PrivateFolder(tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
