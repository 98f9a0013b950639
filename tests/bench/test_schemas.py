import json

import pytest

from bench import schemas
from bench.instances import in_order, listed_only
from bench.schemas import COLUMNS, rows
from engine.config import DEMO_MODEL_PATH

_TOKENIZER = DEMO_MODEL_PATH / "tokenizer.json"
_OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "object"}},
    "required": ["a"],
}
_DEEP: object = {}
for _ in range(9):
    _DEEP = {"x": _DEEP}
_CASES = {
    "Glaiveai2K---a.json": (
        _OBJECT,
        [
            ({"a": 1}, True),
            ({"b": {}, "a": 1}, True),
            ({"b": {}, "c": 2, "a": 1}, True),
            ({"a": 1, "b": _DEEP}, True),
            ({"a": "1"}, False),
            ({}, False),
        ],
    ),
    "Github_easy---b.json": ({"type": "number", "multipleOf": 0.5}, [(1.5, True), (1.25, False)]),
    "JME_0.json": ({"not": {"multipleOf": 2}}, [(1, True)]),
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, (schema, tests) in _CASES.items():
        cases = [{"data": data, "valid": valid} for data, valid in tests]
        (folder / name).write_text(json.dumps({"schema": schema, "tests": cases}))
    return folder


def test_schemas_are_counted_and_instances_judged(folder):
    measured = {row["case"]: row for row in rows(folder, _TOKENIZER, None, 1)}
    assert list(measured) == ["Github_easy", "Glaiveai2K", "JME", "all"]
    assert all(column in row for row in measured.values() for column in COLUMNS)
    names = ["schemas", "compiled", "automaton", "grammar", "valid", "accepted"]
    names += ["key_order", "unlisted", "other", "invalid", "refused", "outputs", "outputs_valid"]
    counts = {case: [row[name] for name in names] for case, row in measured.items()}
    assert counts == {
        "Glaiveai2K": [1, 1, 1, 0, 4, 1, 1, 1, 1, 2, 2, 4, 4],
        "Github_easy": [1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0],
        "JME": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "all": [3, 2, 1, 1, 5, 2, 1, 1, 1, 3, 3, 4, 4],
    }


def test_a_limit_draws_files_at_random(tmp_path):
    for number in range(5):
        (tmp_path / f"JME_{number}.json").write_text(json.dumps({"schema": {"const": number}}))
    *_, whole = rows(tmp_path, _TOKENIZER, 2, 1)
    assert whole["schemas"] == 2


def test_files_with_a_known_result_are_not_judged_again(folder, tmp_path):
    results = tmp_path / "results.jsonl"
    *_, first = rows(folder, _TOKENIZER, 2, 1, 2, results)
    known = [json.loads(line) for line in results.read_text().splitlines()]
    assert first["schemas"] == len(known) == 2
    results.write_text("".join(json.dumps({**line, "valid": 100}) + "\n" for line in known))
    *_, whole = rows(folder, _TOKENIZER, None, 1, 2, results)
    assert whole["schemas"] == 3
    assert whole["valid"] >= 200
    names = [json.loads(line)["file"] for line in results.read_text().splitlines()]
    assert sorted(names) == sorted(_CASES)


def test_a_file_that_takes_too_long_counts_as_not_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(schemas, "MOST_SECONDS", 1)
    definitions: dict = {
        f"d{n}": {"properties": {name: {"$ref": f"#/$defs/d{n + 1}"} for name in "ab"}}
        for n in range(40)
    }
    doubled = {"$defs": {**definitions, "d40": {"type": "string"}}, "$ref": "#/$defs/d0"}
    for name, schema in (("JME_0", doubled), ("JME_1", {"const": 1})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"schema": schema}))
    results = tmp_path / "results.jsonl"
    *_, whole = rows(tmp_path, _TOKENIZER, None, 1, 1, results)
    assert (whole["schemas"], whole["compiled"]) == (2, 1)
    assert "no result within 1 s" in results.read_text()


def test_members_are_reordered_and_dropped_as_the_schema_lists_them():
    schema = {
        "$defs": {"inner": {"properties": {"x": {}, "y": {}}}},
        "allOf": [{"properties": {"a": {"$ref": "#/$defs/inner"}}}],
        "properties": {"b": {"items": {"$ref": "#/$defs/inner"}}, "free": {"type": "object"}},
    }
    data = {"z": 1, "a": {"y": 1, "x": 2}, "free": {"q": 1}, "b": [{"w": 0, "y": 1, "x": 2}]}
    ordered = {"b": [{"x": 2, "y": 1, "w": 0}], "free": {"q": 1}, "a": {"x": 2, "y": 1}, "z": 1}
    assert json.dumps(in_order(data, schema)) == json.dumps(ordered)
    kept = {"b": [{"x": 2, "y": 1}], "free": {"q": 1}, "a": {"x": 2, "y": 1}}
    assert json.dumps(listed_only(data, schema)) == json.dumps(kept)
