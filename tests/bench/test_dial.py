import json
from pathlib import Path

import pytest
import typer

from bench import page as pages
from bench.dial import COLUMNS, rows, table
from bench.questions import read_file

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    file = tmp_path_factory.mktemp("tasks") / "own.jsonl"
    lines = [
        {"task": "greet", "prompt": "hello", "answer": "Hello! How can I help you?"},
        {"task": "count", "prompt": "Count to 30", "pattern": "^1, 2"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    return list(rows("demo", read_file(file), None, max_tokens=64))


def test_each_task_and_all_have_a_row_with_what_each_quality_saves_and_loses(measured):
    assert [row["case"] for row in measured] == ["greet", "count", "all"]
    for row in measured:
        assert set(row) == {"case", *COLUMNS}
        assert row["exact_match"] == 1
        assert row["balanced_lost"] == row["fast_lost"] == 0
        assert 0 < row["balanced_saved"] <= row["fast_saved"] < 1
    assert measured[-1]["questions"] == 2


def test_the_table_replaces_the_old_one_of_a_page_and_nothing_else(measured, tmp_path):
    page = tmp_path / "page.md"
    before, _, after = PAGE.read_text().partition("<!-- easel bench dial -->")
    page.write_text(PAGE.read_text())
    for _ in range(2):
        pages.check(page, "dial")
        pages.write(page, "dial", table("demo", measured))
    made = page.read_text()
    assert made.startswith(before)
    assert made.endswith(after.partition("<!-- end -->")[2])
    written = made.removeprefix(before)
    assert "\n| greet | 1 | 100.0% |" in written
    assert written.count("| all |") == 1


def test_a_page_without_a_place_for_the_table_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("No table")
    with pytest.raises(typer.BadParameter, match=r"page\.md has no lines <!--"):
        pages.check(tmp_path / "page.md", "dial")
