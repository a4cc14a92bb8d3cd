"""The tables of figures, from the records in ``benchmarks/results``: values, limits, and what missed them.

    python benchmarks/readme_table.py            rewrite the tables in README.md and docs/figures.md
    python benchmarks/readme_table.py --check    exit with 1 if one of them has another table

``ROWS`` of ``figure_rows`` says which records the docs show and in which words. A record that misses its limit must be
in a row. ``README_ROWS`` are the few that a reader needs to decide, with a count of the limits that are missed. Values
of one row are joined by semicolons, in the order of its records.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from figure_rows import README_ROWS, ROWS, Row
from records import reached

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- figures: begin, written by benchmarks/readme_table.py -->", "<!-- figures: end -->"


def load(folder: Path = RESULTS) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """All records by "file/name", and of each file what stands beside its records."""
    records, headers = {}, []
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        headers.append({key: value for key, value in document.items() if key != "records"})
        records |= {f"{path.stem}/{entry['name']}": entry for entry in document["records"]}
    return records, headers


def find(records: dict[str, dict[str, Any]], name: str) -> str:
    """The full name, "file/name", of a record.

    Raises:
        LookupError: if there is none, or more than one.
    """
    found = [full for full in records if full == name or full.split("/", 1)[1] == name]
    if len(found) != 1:
        raise LookupError(f"Expected one record {name!r} in {RESULTS}; got {found}. Name it in ROWS as file/name.")
    return found[0]


def table(records: dict[str, dict[str, Any]], headers: list[dict[str, Any]], rows: dict[str, tuple[Row, ...]]) -> str:
    """The table in Markdown.

    Raises:
        LookupError: if a row names no record.
    """
    dates = sorted(header["date"] for header in headers)
    machines = sorted({f"{header['machine']['cores']} cores of {header['machine']['cpu']}" for header in headers})
    lines = [
        f"Measured {dates[0]} to {dates[-1]} on {', '.join(machines)}. **Bold**: the limit was missed.",
        "",
        "| | ours | to reach | beside it |",
        "|---|---|---|---|",
    ]
    for title, group in rows.items():
        lines += [f"| **{title}** | | | |"] * bool(title)
        lines += [line(row, [records[find(records, name)] for name in row.names]) for row in group]
    return "\n".join(lines)


def check_misses(records: dict[str, dict[str, Any]], rows: dict[str, tuple[Row, ...]]) -> None:
    """That every miss is shown.

    Raises:
        LookupError: if a record that misses its limit is in no row.
    """
    shown = {find(records, name) for group in rows.values() for row in group for name in row.names}
    hidden = sorted(name for name, entry in records.items() if reached(entry) == "no" and name not in shown)
    if hidden:
        raise LookupError(f"Expected a row for every record that misses its limit; got none for {hidden}. Add one.")


def count(records: dict[str, dict[str, Any]]) -> str:
    """How many limits there are and how many are missed, in words."""
    found = [reached(entry) for entry in records.values() if entry["limit"]]
    missed = found.count("no")
    reach = f"Of {len(found)} figures with a limit {len(found) - missed} reach it."
    return f"{reach} [All of them](docs/figures.md), with the {missed} that do not."


def tables() -> dict[str, str]:
    """The text between the marks of each page, by its path."""
    records, headers = load()
    check_misses(records, ROWS)
    return {
        "README.md": f"{count(records)}\n\n{table(records, headers, README_ROWS)}",
        "docs/figures.md": table(records, headers, ROWS),
    }


def line(row: Row, entries: list[dict[str, Any]]) -> str:
    """One line of the table."""
    ours = "; ".join(
        f"**{number(entry['value'], row.digits)}**" if reached(entry) == "no" else number(entry["value"], row.digits)
        for entry in entries
    )
    limits = [entry["limit"] for entry in entries]
    limit = row.reach or (limits[0] if len(set(limits)) == 1 else "; ".join(limit or "none" for limit in limits))
    baselines = [entry["baseline"] for entry in entries]
    beside = row.beside
    if beside and None not in baselines:
        is_rate = any(entry["ratio"] is not None for entry in entries)  # of which a ratio was taken: another unit
        values = (short(value) if is_rate else number(value, row.digits) for value in baselines)
        values = "; ".join(dict.fromkeys(values))
        beside = f"{values} ({beside})"
    return f"| {row.words} | {ours} | {limit.replace('<', '&lt;').replace('>', '&gt;')} | {beside} |"


def number(value: float, digits: int) -> str:
    """With so many decimal places."""
    return f"{value:.{digits}f}"


def short(value: float) -> str:
    """To three significant digits, without exponents."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_table(page: str, text: str) -> str:
    """The page with the table between its marks.

    Raises:
        LookupError: if the marks are not there once each.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise LookupError(f"Expected the marks {BEGIN!r} and {END!r} once each in the page. Put them there.")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main(arguments: argparse.Namespace) -> int:
    """Rewrite or check; the exit status."""
    differ = []
    for name, text in tables().items():
        path = ROOT / name
        page = path.read_text()
        wanted = with_table(page, text)
        if page != wanted:
            differ.append(name)
            if not arguments.check:
                path.write_text(wanted)
    if differ and arguments.check:
        print(f"{' and '.join(differ)} have another table than the records: run python benchmarks/readme_table.py.")
    return int(bool(differ) and arguments.check)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true", help="write nothing, exit with 1 if a page differs")
    sys.exit(main(options.parse_args()))
