"""What every measurement prints: the table, and before it what is being done."""

from bench.compare import Output, alternate, of_case, report


def printed(monkeypatch, capsys, rows, columns, width):
    monkeypatch.setenv("COLUMNS", str(width))
    report("A title", rows, columns, Output())
    return capsys.readouterr().out


def test_a_table_wider_than_the_terminal_is_split_and_nothing_is_cut(monkeypatch, capsys):
    columns = [f"a_long_heading_{n}" for n in range(12)]
    rows = [{"case": "a case with a name of many words", **dict.fromkeys(columns, 1234567.0)}]
    out = printed(monkeypatch, capsys, rows, columns, 80)
    assert out.count("A title") > 1
    assert out.count("1,234,567") == len(columns)
    assert out.count("heading") == len(columns)
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert printed(monkeypatch, capsys, rows, columns, 400).count("A title") == 1


def test_a_column_without_a_value_is_left_out(monkeypatch, capsys):
    rows = [{"case": "one", "some": 1, "none": None}]
    out = printed(monkeypatch, capsys, rows, ["some", "none"], 80)
    assert "some" in out
    assert "none" not in out


def test_a_comparison_shows_its_rounds():
    shown = []
    alternate(lambda: None, lambda: None, rounds=2, show=of_case(shown.append, "a case"))
    assert shown == ["a case: warming up", "a case: round 1 of 2", "a case: round 2 of 2"]


def test_nothing_is_printed_while_the_line_of_progress_is_shown(monkeypatch, capsys):
    """Each print is preceded by a call of `hide`, which is noted among the lines here."""

    def rows():
        print("showing")
        yield {"case": "one", "some": 1}
        print("showing")

    monkeypatch.setenv("COLUMNS", "80")
    report("A title", rows(), ["some"], Output(), hide=lambda: print("hidden"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["showing", "hidden", "one", "showing"]
    assert lines[4] == "hidden"
    assert lines[5].startswith("A title")
