"""docs/configuration.md agrees with the settings."""

from pathlib import Path

from app.settings import Settings
from tests.docs.configuration import tables

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()


def test_the_tables_are_the_ones_generated_from_the_settings():
    assert PAGE.endswith(f"\n{tables()}\n"), "run: python -m tests.docs.configuration"


def test_every_setting_has_a_line():
    for name in Settings.model_fields:
        assert PAGE.count(f"\n| `EASEL_{name.upper()}` |") == 1


def test_bounds_and_choices_are_shown():
    assert "| `EASEL_PORT` | `8000` | ≥ 0, ≤ 65535 |" in PAGE
    assert "| `EASEL_LOG_FORMAT` | `text` | `text`, `json` |" in PAGE
    assert "| `EASEL_METRICS_OPEN` | `true` | `true`, `false` |" in PAGE
