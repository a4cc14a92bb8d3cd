"""The tables of ``density.py`` and ``missing.py`` for the documentation, from their records.

python benchmarks/density_table.py            rewrite benchmarks/results/density.md
python benchmarks/density_table.py --check    exit with 1 if it holds other tables
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
METHODS = {
    "gaussian": "one Gaussian",
    "mixture": "Gaussian mixture",
    "kernel_density": "kernel density",
    "flow": "flow, equal seconds",
    "flow_at_its_best": "flow, its own end",
}


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Records by name."""
    return {entry["name"]: entry for entry in json.loads(path.read_text())["records"]} if path.exists() else {}


def names(records: dict[str, Any], start: str, end: str) -> list[str]:
    """What stands between the two, in the names of records."""
    found = [name.removeprefix(start).removesuffix(end) for name in records if name.startswith(start)]
    return [name for name in found if start + name + end in records]


def density(records: dict[str, dict[str, Any]]) -> str:
    """Test nats a row of ``learn_prior`` less those of others."""
    head = ["table", "rows x columns", "splits", *METHODS.values(), "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in names(records, "density_", "_minus_gaussian"):
        first = records[f"density_{name}_minus_gaussian"]
        error = records.get(f"density_{name}_minus_gaussian_se")
        cells = [name.replace("_", " "), "{rows} x {columns}".format(**first["settings"]), first["settings"]["seeds"]]
        for method in METHODS:
            text = f"{records[f'density_{name}_minus_{method}']['value']:+.2f}"
            cells.append(text + (f" ({error['value']:.2f})" if error and method == "gaussian" else ""))
        lines.append("| " + " | ".join(map(str, [*cells, f"{first['seconds']:.0f}"])) + " |")
    return "\n".join(lines)


def missing(records: dict[str, dict[str, Any]]) -> str:
    """Coverage of missing cells, their errors, the smallest effective size, and the largest R-hat."""
    head = [
        "table",
        "cells",
        "in 90% intervals",
        "one Gaussian's",
        "error, sd",
        "one Gaussian's",
        "least effective size",
        "largest R-hat",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in names(records, "missing_", "_coverage_90"):
        share, error = records[f"missing_{name}_coverage_90"], records[f"missing_{name}_rmse"]
        cells = [name.replace("_", " "), share["settings"]["cells"], f"{share['value']:.2f}"]
        cells += [f"{share['settings']['others']['gaussian']:.2f}", f"{error['value']:.3f}", f"{error['baseline']:.3f}"]
        cells += [f"{records[f'missing_{name}_min_effective_size']['value']:.0f}"]
        cells += [f"{records[f'missing_{name}_rhat']['value']:.3f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def document(results: Path) -> str:
    """Both tables, with a line of words before each."""
    return (
        "Test nats a row of `learn_prior`, less those of the other (standard error over splits):\n\n"
        f"{density(load(results / 'density.json'))}\n\n"
        "Cells that were taken out of test rows, and drawn again given the rest:\n\n"
        f"{missing(load(results / 'missing.json'))}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    found, path = document(RESULTS), RESULTS / "density.md"
    if not parser.parse_args().check:
        path.write_text(found)
    elif not path.exists() or path.read_text() != found:
        sys.exit("benchmarks/results/density.md is not that of the records: run benchmarks/density_table.py")


if __name__ == "__main__":
    main()
