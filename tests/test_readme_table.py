"""The tables of figures are those of the records, with their limits, and leave no miss out."""

import re
import subprocess
import sys

import pytest
from test_benchmark_problems import BENCHMARKS, load

figures = load("readme_table")


def records(value, limit, baseline=None):
    entry = {"name": "a", "value": value, "limit": limit, "baseline": baseline, "ratio": None}
    return {"file/a": entry}, [{"date": "2026-01-01", "machine": {"cores": 2, "cpu": "AMD"}}]


@pytest.mark.parametrize("name", ["README.md", "docs/figures.md"])
def test_a_page_has_the_table_of_the_records(name):
    page = (figures.ROOT / name).read_text()
    assert figures.with_table(page, figures.tables()[name]) == page


@pytest.mark.parametrize("name", ["README.md", "docs/figures.md"])
def test_check_exits_with_1_where_a_page_differs(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    pages = {each: (figures.ROOT / each).read_text() for each in figures.tables()}
    added = f"| a figure without a record | 9 | |\n{figures.END}"
    for each, text in pages.items():
        (tmp_path / each).write_text(text.replace(figures.END, added) if each == name else text)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    check, write = (figures.argparse.Namespace(check=check) for check in (True, False))
    assert figures.main(check) == 1
    assert (
        f"{name} have another table than the records: run python benchmarks/readme_table.py" in capsys.readouterr().out
    )
    assert figures.main(write) == 0
    assert figures.main(check) == 0
    assert (tmp_path / name).read_text() == pages[name]


def test_the_readme_counts_the_limits_and_the_misses():
    entries = [{"limit": limit, "value": 2.0} for limit in ("<= 1", "<= 3", ">= 1", "")]
    found = figures.count(dict(enumerate(entries)))
    assert found.startswith("Of 3 figures with a limit 2 reach it.")
    assert found.endswith("with the 1 that do not.")


def test_it_runs_as_a_script():
    command = [sys.executable, str(BENCHMARKS / "readme_table.py"), "--check"]
    subprocess.run(command, check=True, timeout=300)


@pytest.mark.parametrize(("value", "shown"), [(1.049, "| 1.05 | &lt;= 1.05 | 2.00 (theirs) |"), (1.06, "| **1.06** |")])
def test_values_come_with_limit_and_baseline_and_misses_are_marked(value, shown):
    rows = {"group": (figures.Row("words", ("a",), "theirs"),)}
    assert shown in figures.table(*records(value, "<= 1.05", baseline=2.0), rows)


def test_a_miss_in_no_row_and_a_row_of_no_record_are_refused():
    with pytest.raises(LookupError, match=r"misses its limit; got none for \['file/a'\]"):
        figures.check_misses(records(2.0, "<= 1")[0], {})
    with pytest.raises(LookupError, match=r"Expected one record 'b' .* got \[\]"):
        figures.table(*records(2.0, ""), {"group": (figures.Row("words", ("b",)),)})


def test_words_hold_no_figure_of_a_record():
    """What the words say is settings; decimals would be measurements, but for the noise levels that were set."""
    words = " ".join(row.words + row.beside for group in figures.ROWS.values() for row in group)
    assert set(re.findall(r"\d+\.\d+", words)) <= {"0.5"}
