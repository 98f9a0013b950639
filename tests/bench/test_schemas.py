import json

from bench.schemas import COLUMNS, rows
from engine.config import DEMO_MODEL_PATH

_CASES = {
    "Glaiveai2K---a.json": (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        [({"a": 1}, True), ({"a": "1"}, False), ({}, False)],
    ),
    "Github_easy---b.json": ({"type": "number", "multipleOf": 0.5}, [(1.5, True), (1.25, False)]),
    "JME_0.json": ({"not": {"type": "null"}}, [(1, True)]),
}


def test_schemas_are_counted_and_instances_judged(tmp_path):
    for name, (schema, tests) in _CASES.items():
        cases = [{"data": data, "valid": valid} for data, valid in tests]
        (tmp_path / name).write_text(json.dumps({"schema": schema, "tests": cases}))
    measured = {
        row["case"]: row for row in rows(tmp_path, DEMO_MODEL_PATH / "tokenizer.json", None, 1)
    }
    assert list(measured) == ["Github_easy", "Glaiveai2K", "JME", "all"]
    assert all(column in row for row in measured.values() for column in COLUMNS)
    names = [
        "schemas",
        "compiled",
        "automaton",
        "grammar",
        "valid",
        "accepted",
        "invalid",
        "refused",
    ]
    counts = {case: [row[name] for name in names] for case, row in measured.items()}
    assert counts == {
        "Glaiveai2K": [1, 1, 1, 0, 1, 1, 2, 2],
        "Github_easy": [1, 1, 0, 1, 1, 1, 1, 1],
        "JME": [1, 0, 0, 0, 0, 0, 0, 0],
        "all": [3, 2, 1, 1, 2, 2, 3, 3],
    }


def test_a_limit_draws_files_at_random(tmp_path):
    for number in range(5):
        (tmp_path / f"JME_{number}.json").write_text(json.dumps({"schema": {"const": number}}))
    *_, whole = rows(tmp_path, DEMO_MODEL_PATH / "tokenizer.json", 2, 1)
    assert whole["schemas"] == 2
