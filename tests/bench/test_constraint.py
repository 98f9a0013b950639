"""The measurement of what a constraint costs."""

from bench import constraint
from engine.config import DEMO_MODEL_PATH


def test_every_schema_has_a_row_with_all_columns(monkeypatch):
    monkeypatch.setattr(constraint, "FIELDS", (2, 5))
    monkeypatch.setattr(constraint, "CANVAS", 64)
    rows = list(constraint.rows(1, DEMO_MODEL_PATH / "tokenizer.json"))
    assert [row["case"] for row in rows] == ["2 fields", "5 fields"]
    assert all(set(constraint.COLUMNS) <= set(row) for row in rows)
    assert rows[0]["states"] < rows[1]["states"]
