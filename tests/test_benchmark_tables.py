"""The benchmarks of tables: what runs of several seeds come to, and that a later call adds to an earlier one."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(name="load")
def _load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in ("density_baselines", "density_priors", "density_tables", "records"):
        sys.modules.pop(name, None)


METHODS = ("ours", "gaussian", "mixture", "kernel_density", "maf", "nsf", "maf_equal", "nsf_equal")


def test_density_records_are_differences_over_seeds(load):
    by_seed = {str(seed): {name: -float(i) - seed for i, name in enumerate(METHODS)} for seed in (0, 1)}
    by_seed["1"]["ours"] += 1
    for run in by_seed.values():
        run["seconds"] = 10.0
    found = {entry["name"]: entry for entry in load("density").summary("t", by_seed, 100, 3)}
    assert found["density_t_minus_gaussian"]["value"] == 1.5
    assert found["density_t_minus_flow"]["value"] == 6.5  # the better of the two at equal seconds
    assert found["density_t_minus_gaussian_se"]["value"] == 0.5
    assert found["density_t_minus_gaussian"]["settings"]["runs"] == by_seed


def test_missing_records_are_over_the_cells_of_all_seeds(load):
    def run(error, inside, methods):
        return {
            "errors": dict.fromkeys(methods, error),
            "inside": dict.fromkeys(methods, inside),
            "min_effective_size": 10.0 * len(error),
            "rhat": 1.0 + 0.01 * len(error),
            "seconds": dict.fromkeys(methods, 2.0),
        }

    by_seed = {
        "0": run([3.0], [True], ("ours", "gaussian", "flow")),
        "1": run([0.0, 0.0], [True, False], ("ours", "gaussian")),
    }
    entries = {entry["name"]: entry for entry in load("missing").summary("t", by_seed)}
    found = {name: entry["value"] for name, entry in entries.items()}
    assert found["missing_t_coverage_90"] == pytest.approx(2 / 3)
    assert found["missing_t_rmse"] == pytest.approx(3**0.5)
    assert found["missing_t_min_effective_size"] == 10.0
    assert found["missing_t_rhat"] == 1.02
    assert entries["missing_t_rmse"]["settings"]["others"]["flow"] == 3.0  # its one seed's


def test_a_later_call_finds_the_runs_of_an_earlier_one(load, tmp_path):
    records = load("records")
    path = tmp_path / "found.json"
    assert records.earlier_runs("a", path) == {}
    records.write([records.record("a", 1.0, "", runs={"0": {"ours": 1.0}}), records.record("b", 1.0, "")], path)
    assert records.earlier_runs("a", path) == {"0": {"ours": 1.0}}
    assert records.earlier_runs("c", path) == {}


def test_the_tables_of_the_documentation_are_those_of_the_records(load):
    results = BENCHMARKS / "results"
    assert (results / "density.md").read_text() == load("density_table").document(results)


def test_a_table_has_a_line_for_each_table_of_data(load):
    def record(name, value, **settings):
        return {"name": name, "value": value, "baseline": 0.5, "seconds": 12.0, "settings": settings}

    density = {
        f"density_t_1_minus_{m}": record("", 0.25, rows=100, columns=3, seeds=2) for m in load("density_table").METHODS
    }
    density["density_t_1_minus_gaussian_se"] = record("", 0.125)
    assert load("density_table").density(density).splitlines()[2:] == [
        "| t 1 | 100 x 3 | 2 | +0.25 (0.12) | +0.25 | +0.25 | +0.25 | +0.25 | 12 |"
    ]
    missing = {
        "missing_t_coverage_90": record("", 0.9, cells=40, others={"gaussian": 0.875}),
        "missing_t_rmse": record("", 0.4),
        "missing_t_min_effective_size": record("", 96.2),
        "missing_t_rhat": record("", 1.0042),
    }
    assert load("density_table").missing(missing).splitlines()[2:] == [
        "| t | 40 | 0.90 | 0.88 | 0.400 | 0.500 | 96 | 1.004 |"
    ]
