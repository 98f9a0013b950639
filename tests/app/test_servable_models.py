"""`easel models`: which models it finds, and what it says of them."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from app import plan_report
from app.cli import main
from app.settings import Settings
from bench.random_model import Shape, write_random_model
from engine.sizing.dimensions import RELEASED_MODEL
from engine.sizing.gpu import Gpu


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """Hide the environment's settings, the GPU and the network. Returns the hub's cache, empty."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"EASEL_{name.upper()}", raising=False)
    monkeypatch.setattr(plan_report, "first_gpu", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def run(*arguments):
    result = CliRunner(env={"COLUMNS": "120"}).invoke(main, ["models", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def models(*arguments):
    return {each["model"]: each for each in json.loads(run("--json", *arguments))}


def test_the_demo_model_and_the_released_one_are_always_listed():
    listed = models()
    assert list(listed) == ["demo", RELEASED_MODEL]
    assert (listed["demo"]["where"], listed["demo"]["fits"]) == ("built in", True)
    assert listed[RELEASED_MODEL]["where"] == "on the hub"
    assert listed["demo"]["weights"] < 2**28 < listed[RELEASED_MODEL]["weights"]


def test_the_profile_is_that_of_the_gpu(monkeypatch):
    gpu = Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30)
    monkeypatch.setattr(plan_report, "first_gpu", lambda: gpu)
    released = models()[RELEASED_MODEL]
    assert (released["profile"], released["fits"]) == ("h100", True)
    assert "On NVIDIA H100" in run()


def test_downloaded_models_are_listed_by_their_names(surroundings, tmp_path):
    snapshot = surroundings / "models--owner--tiny" / "snapshots" / "abc"
    write_random_model(snapshot, Shape())
    other = surroundings / "models--owner--other" / "snapshots" / "abc"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "gemma"}')
    for folder in (snapshot, other):
        refs = folder.parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text("abc")
    listed = models()
    assert list(listed) == ["demo", "owner/tiny", RELEASED_MODEL]
    assert (listed["owner/tiny"]["where"], listed["owner/tiny"]["fits"]) == ("downloaded", True)


def test_checkpoints_in_given_folders_are_listed_and_damaged_ones_with_the_reason(tmp_path):
    write_random_model(tmp_path / "models" / "whole", Shape())
    shutil.copytree(tmp_path / "models" / "whole", tmp_path / "models" / "empty")
    (tmp_path / "models" / "empty" / "model.safetensors").unlink()
    listed = models(tmp_path / "models")
    assert listed[str(tmp_path / "models" / "whole")]["fits"] is True
    empty = listed[str(tmp_path / "models" / "empty")]
    assert empty["fits"] is False
    assert "model.safetensors" in empty["message"]
    assert "weight files are missing: model.safetensors" in run(tmp_path / "models")


def test_the_configured_model_is_listed(monkeypatch, tmp_path):
    write_random_model(tmp_path / "mine", Shape())
    monkeypatch.setenv("EASEL_MODEL", str(tmp_path / "mine"))
    listed = models(tmp_path)
    assert list(listed) == ["demo", str(tmp_path / "mine"), RELEASED_MODEL]
    assert listed[str(tmp_path / "mine")]["where"] == "configured"


def test_a_folder_that_is_called_demo_does_not_hide_the_demo_model(monkeypatch, tmp_path):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert models()["demo"]["fits"] is True
