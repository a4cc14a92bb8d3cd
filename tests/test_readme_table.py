"""The README's table of figures is that of the records, with their limits, and leaves no miss out."""

import re
import subprocess
import sys

import pytest
from test_benchmark_problems import BENCHMARKS, load

figures = load("readme_table")


def records(value, limit, baseline=None):
    entry = {"name": "a", "value": value, "limit": limit, "baseline": baseline, "ratio": None}
    return {"file/a": entry}, [{"date": "2026-01-01", "machine": {"cores": 2, "cpu": "AMD"}}]


def test_the_readme_has_the_table_of_the_records():
    readme = (figures.ROOT / "README.md").read_text()
    assert figures.with_table(readme, figures.table(*figures.load(), figures.ROWS)) == readme


def test_check_exits_with_1_where_the_readme_differs(tmp_path, monkeypatch, capsys):
    readme = (figures.ROOT / "README.md").read_text()
    added = f"| a figure without a record | 9 | |\n{figures.END}"
    (tmp_path / "README.md").write_text(readme.replace(figures.END, added))
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    check, write = (figures.argparse.Namespace(check=check) for check in (True, False))
    assert figures.main(check) == 1
    assert "run python benchmarks/readme_table.py" in capsys.readouterr().out
    assert figures.main(write) == 0
    assert figures.main(check) == 0
    assert (tmp_path / "README.md").read_text() == readme


def test_it_runs_as_a_script():
    command = [sys.executable, str(BENCHMARKS / "readme_table.py"), "--check"]
    subprocess.run(command, check=True, timeout=300)


@pytest.mark.parametrize(("value", "shown"), [(1.049, "| 1.05 | &lt;= 1.05 | 2.00 (theirs) |"), (1.06, "| **1.06** |")])
def test_values_come_with_limit_and_baseline_and_misses_are_marked(value, shown):
    rows = {"group": (figures.Row("words", ("a",), "theirs"),)}
    assert shown in figures.table(*records(value, "<= 1.05", baseline=2.0), rows)


def test_a_miss_in_no_row_and_a_row_of_no_record_are_refused():
    with pytest.raises(LookupError, match=r"misses its limit; got none for \['file/a'\]"):
        figures.table(*records(2.0, "<= 1"), {})
    with pytest.raises(LookupError, match=r"Expected one record 'b' .* got \[\]"):
        figures.table(*records(2.0, ""), {"group": (figures.Row("words", ("b",)),)})


def test_words_hold_no_figure_of_a_record():
    """What the words say is settings; decimals would be measurements, but for the noise levels that were set."""
    words = " ".join(row.words + row.beside for group in figures.ROWS.values() for row in group)
    assert set(re.findall(r"\d+\.\d+", words)) <= {"0.5"}
