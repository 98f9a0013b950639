"""The command line: its help, its version, and what it says about wrong names and values."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from app.cli import main
from app.cluster.options import ClusterOptions
from app.settings import Settings
from engine.config import profile_names

SLOW = ("fastapi", "huggingface_hub", "jsonschema_rs", "numpy", "torch", "transformers", "uvicorn")


def easel(*arguments, **variables):
    return CliRunner(env={"COLUMNS": "400", **variables}).invoke(main, list(arguments))


def test_the_help_of_serve_names_every_profile_and_every_setting():
    text = easel("serve", "--help").output
    assert all(name in text for name in profile_names())
    assert all(f"--{name.replace('_', '-')}" in text for name in Settings.model_fields)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([name, "--help"] for name in ("serve", "cluster", "chat", "plan", "models", "doctor")),
        ["--version"],
        ["version"],
    ],
    ids=" ".join,
)
def test_help_and_version_import_nothing_that_takes_long(arguments):
    code = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print(json.dumps([m for m in {SLOW} if m in sys.modules])))\n"
        "from app.__main__ import main\n"
        "main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout.splitlines()[-1]) == []


def test_the_help_of_cluster_names_its_own_options_and_every_setting():
    text = easel("cluster", "--help").output
    fields = [*ClusterOptions.model_fields, "ray_address", *Settings.model_fields]
    assert all(f"--{name.replace('_', '-')}" in text for name in fields)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--replicas", "0"], "--replicas: Input should be greater than or equal to 1, not '0'"),
        (["--replicas", "3", "--max-replicas", "2"], "2 is less than replicas, which is 3"),
        (["--port", "x"], "EASEL_PORT: "),
    ],
)
def test_a_wrong_option_of_a_cluster_is_refused_by_its_name(arguments, error):
    result = easel("cluster", *arguments)
    assert result.exit_code == 2
    assert error in result.stderr


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_cluster_without_ray_says_how_to_install_it():
    result = easel("cluster")
    assert result.exit_code == 2
    assert result.stderr == (
        "easel: Ray is not installed; install it with: pip install 'easel-server[ray]'\n"
    )


def test_the_version_is_an_option_and_a_command():
    assert easel("--version").output == easel("version").output != ""
    assert easel("--version").exit_code == 0


def test_a_misspelt_variable_is_refused_and_the_closest_one_is_named():
    result = easel("plan", EASEL_PROT="1", EASEL_ZZZ="1")
    assert result.exit_code == 2
    assert result.stderr == (
        "easel: EASEL_PROT: no such setting (did you mean EASEL_PORT?); "
        "EASEL_ZZZ: no such setting\n"
    )


@pytest.mark.parametrize("variables", [{"EASEL_PORT": "80000"}, {}], ids=["variable", "option"])
def test_a_wrong_value_is_refused_with_its_setting_and_what_is_allowed(variables):
    result = easel("serve", *([] if variables else ["--port", "80000"]), **variables)
    assert result.exit_code == 2
    assert result.stderr == (
        "easel: EASEL_PORT: Input should be less than or equal to 65535, not '80000'\n"
    )
