"""The table that every measurement prints."""

from bench.compare import Output, report


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
