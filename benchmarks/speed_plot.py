"""The picture of the speed records: ratios beside their limits, and growth in log-log axes.

As a command it draws what earlier runs wrote: `python benchmarks/speed_plot.py FILE.json ... --plot FILE.png`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from records import reached

_MET, _MISSED, _FREE = "#2b5c8a", "#c8402f", "#9a9a9a"


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Draw what there is of ratios and slopes into a PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ratios = [entry for entry in records if entry["unit"] == "ratio"]
    slopes = [entry for entry in records if entry["unit"] == "slope"]
    panels = [(draw, entries) for draw, entries in ((_bars, ratios), (_growth, slopes)) if entries]
    if not panels:
        raise ValueError("Expected a record of a ratio or of a slope to draw; got none. Name rows that measure one.")
    size = (6.5 * len(panels), 1.5 + 0.35 * max(len(ratios), 10))
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for panel, (draw, entries) in zip(axes[0], panels, strict=True):
        draw(panel, entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"written: {path}")


def _bars(axes: Any, ratios: list[dict[str, Any]]) -> None:
    colours = {"yes": _MET, "no": _MISSED, "": _FREE}
    rows = np.arange(len(ratios))
    values = [entry["value"] for entry in ratios]
    axes.barh(rows, values, color=[colours[reached(entry)] for entry in ratios])
    for row, entry in enumerate(ratios):
        axes.text(entry["value"], row, f" {entry['value']:.2f}", va="center", fontsize=8)
        if entry["limit"]:
            comparison, bound = entry["limit"].split()
            axes.plot(2 * [float(bound)], [row - 0.45, row + 0.45], color="black")
            sign = {"<=": "at most", ">=": "at least"}[comparison]
            axes.text(
                1.0, row, f"{sign} {bound}", transform=axes.get_yaxis_transform(), va="center", ha="right", fontsize=8
            )
    axes.set_yticks(rows, [entry["name"] for entry in ratios], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(values))
    axes.set_title("ratios; line: limit; blue: reached, red: not, grey: reported")


def _growth(axes: Any, slopes: list[dict[str, Any]]) -> None:
    for entry in slopes:
        sizes, seconds = entry["settings"]["sizes"], entry["settings"]["seconds_by_size"]
        relative = np.asarray(seconds) / seconds[0]
        axes.loglog(np.asarray(sizes) / sizes[0], relative, marker="o", label=f"{entry['name']}: {entry['value']:.2f}")
    top = max(max(entry["settings"]["sizes"]) / entry["settings"]["sizes"][0] for entry in slopes)
    axes.loglog([1, top], [1, top], color="black", linestyle=":", label="proportional")
    axes.legend(fontsize=8)
    axes.set_xlabel("size, in multiples of the smallest")
    axes.set_ylabel("time, in multiples of the smallest's")
    axes.set_title("growth")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("records", nargs="+", type=Path, help="what speed.py --json wrote")
    options.add_argument("--plot", required=True, type=Path, help="a PNG file for the picture")
    arguments = options.parse_args()
    plot([entry for path in arguments.records for entry in json.loads(path.read_text())["records"]], arguments.plot)
