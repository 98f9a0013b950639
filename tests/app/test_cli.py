"""The help and the output of the command line."""

from typer.testing import CliRunner

from app.cli import _banner, main
from app.settings import Settings
from engine.config import profile_names
from engine.messages import Ready


def test_the_help_of_serve_names_every_profile_and_every_setting():
    text = CliRunner(env={"COLUMNS": "400"}).invoke(main, ["serve", "--help"]).output
    assert all(name in text for name in profile_names())
    assert all(f"--{name.replace('_', '-')}" in text for name in Settings.model_fields)


def test_the_banner_shows_the_profile():
    ready = Ready("cpu", "float32", 2048, 32, 1280, profile="demo: max_active 4")
    assert "  profile  demo: max_active 4\n" in _banner(Settings(), "http://127.0.0.1:8000", ready)
