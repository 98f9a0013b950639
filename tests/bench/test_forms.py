"""The measurement of what a demanded form does to answers."""

from bench import forms


def test_every_case_has_a_row_and_answers_by_a_schema_are_valid():
    rows = list(forms.rows(3))
    assert [row["case"] for row in rows] == list(forms.CASES)
    assert all(set(forms.COLUMNS) <= set(row) for row in rows)
    free, by_schema, opposite = rows
    assert (free["unchanged"], free["corrections"]) == (3, 0)
    assert by_schema["valid"] == opposite["valid"] == 3
    assert by_schema["right"] >= free["right"]
    assert opposite["corrections"] > 0
