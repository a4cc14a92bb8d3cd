"""What every benchmark prints and writes: records, the machine they came from, a table."""

import argparse
import datetime
import json
import operator
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpyro


def record(
    name: str,
    value: float,
    unit: str,
    *,
    baseline: float | None = None,
    baseline_name: str = "",
    ratio: float | None = None,
    limit: str = "",
    seconds: float | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """One measured number; ``limit`` is the figure to reach, such as "<= 1.05" or "0.87 to 0.93"."""
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "baseline": baseline,
        "baseline_name": baseline_name,
        "ratio": ratio,
        "limit": limit,
        "seconds": seconds,
        "settings": settings,
    }


def reached(entry: dict[str, Any]) -> str:
    """Whether a record's value meets its limit: "yes", "no", or "" without one."""
    if not entry["limit"]:
        return ""
    value = entry["value"]
    if " to " in entry["limit"]:
        low, high = map(float, entry["limit"].split(" to "))
        return "yes" if low <= value <= high else "no"
    comparison, bound = entry["limit"].split()
    comparisons = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}
    return "yes" if comparisons[comparison](value, float(bound)) else "no"


def print_table(records: list[dict[str, Any]]) -> None:
    """All records, one to a line."""
    print(f"\n{'name':34} {'value':>10} {'unit':14} {'baseline':>10} {'to reach':>10} {'reached':>8} {'seconds':>8}")
    for entry in records:
        baseline = "" if entry["baseline"] is None else f"{entry['baseline']:.4g}"
        seconds = "" if entry["seconds"] is None else f"{entry['seconds']:.0f}"
        print(
            f"{entry['name']:34} {entry['value']:10.4f} {entry['unit']:14} {baseline:>10} {entry['limit']:>10} "
            f"{reached(entry):>8} {seconds:>8}"
        )


def write(records: list[dict[str, Any]], path: Path) -> None:
    """The records as JSON, with the date and the machine."""
    machine = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpyro": numpyro.__version__,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "machine": machine, "records": records}
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\nwritten: {path}")


def merge(records: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """These records, and those of earlier runs that they do not replace: rows take long, and are run one by one."""
    earlier = json.loads(path.read_text())["records"] if path.exists() else []
    new = {entry["name"] for entry in records}
    return sorted([entry for entry in earlier if entry["name"] not in new] + records, key=lambda entry: entry["name"])


def earlier_runs(name: str, path: Path) -> dict[str, Any]:
    """The runs by seed that the setting ``runs`` of a record holds; none if there is no such record."""
    entries = json.loads(path.read_text())["records"] if path.exists() else []
    return next((entry["settings"]["runs"] for entry in entries if entry["name"] == name), {})


def parser(description: str | None, default_json: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--json", type=Path, default=Path("benchmarks/results") / default_json, help="where to write")
    result.add_argument("--seed", type=int, default=0)
    return result


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median of the ratios of neighbouring runs; the order changes every round."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for index in range(rounds):
        pairs = [("ours", ours), ("theirs", theirs)]
        for name, run in pairs if index % 2 == 0 else pairs[::-1]:
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    ratios = [mine / other for mine, other in zip(times["ours"], times["theirs"], strict=True)]
    return statistics.median(times["ours"]), statistics.median(times["theirs"]), statistics.median(ratios)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
