"""Runs the snippets of docs/clients.md: each client's real package against a real server.

The server's streams are full of keep-alives, which every client must skip.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.snippets import Snippet, snippets

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv-clients"
ADDRESS = "http://127.0.0.1:8000"  # in the snippets
PAGE = snippets((ROOT / "docs" / "clients.md").read_text())
COMMANDS = {"python": ("python",), "js": ("node",), "sh": ("bash", "-euo", "pipefail")}
SUFFIXES = {"python": ".py", "js": ".mjs", "sh": ".sh"}
LIMIT_S = 100


@pytest.fixture(scope="module")
def server(shared_server):
    return shared_server(EASEL_MODEL="demo", EASEL_STREAM_IDLE_S="0.001")


def run(snippet: Snippet, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the snippet against the server at `url`.

    It runs in `folder`, which is its home too, and gets nothing of our environment but the PATH.
    """
    file = folder / f"snippet{SUFFIXES[snippet.language]}"
    file.write_text(snippet.code.replace(ADDRESS, url))
    # Node looks for packages in the folder of the file and in the folders above.
    (folder / "node_modules").symlink_to(CLIENTS / "node_modules")
    return subprocess.run(
        [*COMMANDS[snippet.language], file.name],
        cwd=folder,
        env={"PATH": f"{CLIENTS / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize("snippet", PAGE, ids=lambda snippet: snippet.name)
def test_the_snippet_prints_what_the_page_shows(snippet, server, tmp_path):
    assert (CLIENTS / ".installed").exists(), f"install them: make {CLIENTS.name}/.installed"
    if "curl " in snippet.code and shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    result = run(snippet, server.url, tmp_path)
    assert result.returncode == 0, result.stderr
    assert snippet.promises(result.stdout), f"{result.stdout}\n{result.stderr}"
