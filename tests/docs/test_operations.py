"""docs/operations.md names every metric and every alert, and the flags of the endpoint picker."""

import re
from pathlib import Path

import yaml

from tests.docs.metrics_table import table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
ALERTS = yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yml").read_text())


def test_the_table_of_metrics_is_the_one_generated_from_the_metrics():
    assert PAGE.endswith(f"\n{table()}\n"), "run: python -m tests.docs.metrics_table"


def test_every_alert_has_one_line_that_says_what_to_do():
    alerts = [rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]]
    assert re.findall(r"^\| `(Easel\w+)` \|", PAGE, re.MULTILINE) == alerts


def test_the_metrics_that_the_endpoint_picker_reads_exist():
    given = re.findall(r"^--[a-z-]+=(\w+)$", PAGE, re.MULTILINE)
    assert len(given) == 3
    assert all(f"| `{name}` | gauge |" in PAGE for name in given)
