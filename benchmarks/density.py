"""Test nats a row of real tables and of toys: a learned prior beside Gaussians, flows and a kernel density.

    python benchmarks/density.py
    python benchmarks/density.py --tables wine engel --seeds 0 1
    python benchmarks/density.py --csv FILE

Every split (``density_tables``) is standardised by its training rows. Ours is ``nd.learn_prior`` with its own choices,
its density the importance-weighted estimate with 64 trajectories, a lower bound in the mean, and the probability
flow's. FlowJAX's flows run twice: to the end that they find themselves, and for the seconds that ours took to train. A
record's value is the mean difference over the seeds; ``_se`` its standard error over the seeds.
"""

import warnings
from pathlib import Path
from typing import Any

import density_baselines as baselines
import density_tables as tables
import jax
import numpy as np
import records

import numpyro_diffusion as nd
from numpyro_diffusion import evaluation

_TOY_ROWS = 1000  # of training; a fifth of that for the test


def ours(train: np.ndarray, test: np.ndarray, seed: int) -> tuple[np.ndarray, float, float]:
    """(importance-weighted log densities of test rows, the flow's mean, seconds of training)."""
    key_train, key_weights, key_flow = jax.random.split(jax.random.key(seed), 3)
    learned = nd.learn_prior(train, rng_key=key_train, test=0, progress_bar=False)
    weighted = evaluation.importance_weighted(key_weights, learned.distribution, test, num_trajectories=64)
    flow = evaluation.probability_flow(key_flow, learned.distribution, test)
    return np.asarray(weighted.per_point), flow.nats, learned.report.seconds


def compare(train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, float]:
    """Mean test nats a row by method."""
    mean, scale = train.mean(0), train.std(0)
    train, test = (train - mean) / scale, (test - mean) / scale
    weighted, flow, seconds = ours(train, test, seed)
    found = {"ours": float(weighted.mean()), "ours_flow": flow, "seconds": seconds}
    for name in ("gaussian", "mixture", "kernel_density"):
        found[name] = float(getattr(baselines, name)(train, test).log_density.mean())
    for name in baselines.FLOWS:
        found[name] = float(baselines.flow(name, train, test, seed).log_density.mean())
        found[f"{name}_equal"] = float(baselines.flow(name, train, test, seed, seconds).log_density.mean())
    return found


def summary(name: str, runs: list[dict[str, float]], num_rows: int, num_columns: int) -> list[dict[str, Any]]:
    """The records of one table."""
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}

    def difference(other: str) -> tuple[float, float]:
        values = np.asarray([run["ours"] - run[other] for run in runs])
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
        return float(values.mean()), error

    settings = {"rows": num_rows, "columns": num_columns, "seeds": len(runs), "means": mean}
    flow = max(("maf_equal", "nsf_equal"), key=mean.get)
    best = max(baselines.FLOWS, key=mean.get)
    _, error = difference("gaussian")
    # By the end of the record's name: the method, its name in words, the limit.
    compared = {
        "gaussian": ("gaussian", "one Gaussian", f">= {-error:.3g}" if np.isfinite(error) else ""),
        "flow": (flow, f"{flow.removesuffix('_equal')}, equal seconds", ">= 0"),
        "flow_at_its_best": (best, f"{best}, its own end", ""),
        "mixture": ("mixture", "Gaussian mixture by BIC", ""),
        "kernel_density": ("kernel_density", "kernel density", ""),
    }
    entries = [
        records.record(
            f"density_{name}_minus_{end}",
            difference(method)[0],
            "nats a row",
            baseline=mean[method],
            baseline_name=words,
            limit=limit,
            seconds=mean["seconds"],
            **settings,
        )
        for end, (method, words, limit) in compared.items()
    ]
    return [*entries, records.record(f"density_{name}_minus_gaussian_se", error, "nats a row")]


def toy(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows of a toy."""
    rows, _ = tables.TOYS[name](np.random.default_rng(seed), _TOY_ROWS + _TOY_ROWS // 5)
    return rows[:_TOY_ROWS], rows[_TOY_ROWS:]


def main() -> None:
    parser = records.parser(__doc__, "density.json")
    parser.add_argument("--tables", nargs="+", default=[*tables.TABLES, *tables.TOYS], help="which")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of splits and training")
    parser.add_argument("--csv", help="a file with a header line, in place of the tables")
    arguments = parser.parse_args()
    loaders = {Path(arguments.csv).stem: lambda: tables.read_csv(arguments.csv)} if arguments.csv else None
    found = []
    for name in loaders or arguments.tables:
        runs = []
        for seed in arguments.seeds:
            if name in tables.TOYS:
                train, test = toy(name, seed)
            else:
                load = loaders[name] if loaders else lambda name=name: tables.off_the_grid(tables.TABLES[name]())
                train, test = tables.split(load(), seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # "too few rows" is what the table shows
                runs.append(compare(train, test, seed))
            print(name, seed, {key: round(value, 3) for key, value in runs[-1].items()}, flush=True)
        found += summary(name, runs, len(train) + len(test), train.shape[1])
        records.print_table(found[-6:])
    records.write(found, arguments.json)


if __name__ == "__main__":
    main()
