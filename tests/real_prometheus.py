"""A real Prometheus that scrapes a server, with the project's own configuration and alerts."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.polling import wait_until

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docker" / "prometheus"
UNPACKED = ROOT / ".venv-prometheus" / "usr" / "bin"  # by the Makefile
STOP_S = 30


def program(name: str) -> str:
    """Returns the path of prometheus or promtool.

    If it is not installed, the test is skipped, or fails if the environment variable CI is set.
    """
    path = shutil.which(name, path=f"{UNPACKED}:{os.environ['PATH']}")
    if path is None:
        reason = f"{name} is not installed. `make test` gets it on Debian and Ubuntu"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def promtool(*arguments: str, text: str | None = None) -> str:
    """Run promtool with `text` as its standard input. Returns its output.

    Raises AssertionError if it finds a fault.
    """
    done = subprocess.run(
        [program("promtool"), *arguments],
        cwd=ROOT,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Prometheus:
    """A running Prometheus."""

    def __init__(self, api: httpx.Client) -> None:
        self._api = api

    def get(self, path: str, **parameters: str) -> Any:
        """Returns the data of an answer. Raises AssertionError if it is an error."""
        answer = self._api.get(path, params=parameters).json()
        assert answer["status"] == "success", f"{path} {parameters}: {answer}"
        return answer["data"]

    def query(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Returns each series of a query's result: its labels and its value."""
        return [
            (series["metric"], float(series["value"][1]))
            for series in self.get("query", query=query)["result"]
        ]

    def scrapes(self) -> int:
        """Returns how often the server has been scraped."""
        return int(sum(value for _, value in self.query("count_over_time(up[1h])")))

    def wait_for_scrapes(self, count: int) -> None:
        """Wait until the server has been scraped `count` times more."""
        enough = self.scrapes() + count
        wait_until(lambda: self.scrapes() >= enough)


@contextmanager
def running_prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Yields a Prometheus that scrapes `target` (host:port). Its files are in `folder`."""
    ours = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    ours["global"]["scrape_interval"] = "1s"  # not 5 s, which tests would wait for
    ours["global"]["evaluation_interval"] = "1s"
    ours["rule_files"] = [str(FOLDER / name) for name in ours["rule_files"]]
    ours["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    configuration, log = folder / "prometheus.yml", folder / "prometheus.log"
    configuration.write_text(yaml.safe_dump(ours))
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        listening = re.compile(r'"Listening on" address=(\S+)')

        def address() -> re.Match[str] | None:
            assert process.poll() is None, log.read_text()
            return listening.search(log.read_text())

        url = f"http://{wait_until(address)[1]}"
        with httpx.Client(base_url=f"{url}/api/v1/", timeout=10) as api:
            wait_until(lambda: api.get(f"{url}/-/ready").status_code == 200)
            yield Prometheus(api)
    finally:
        process.terminate()
        process.wait(STOP_S)
