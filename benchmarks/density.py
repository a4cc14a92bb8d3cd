"""Test nats a row of real tables and of toys: a learned prior beside Gaussians, flows and a kernel density.

    python benchmarks/density.py
    python benchmarks/density.py --tables wine engel --seeds 0 1
    python benchmarks/density.py --csv FILE

Every split (``density_tables``) is standardised by its training rows. Ours is ``nd.learn_prior`` with its own choices,
its density the importance-weighted estimate with 64 trajectories, a lower bound in the mean, and the probability
flow's. FlowJAX's flows run twice: to the end that they find themselves, and for the seconds that ours took to train. A
record's value is the mean difference over the seeds; ``_se`` its standard error over the seeds. The file of records
holds every run: a later call adds seeds and tables to it, and repeats none.
"""

import warnings
from pathlib import Path
from typing import Any

import density_baselines as baselines
import density_tables as tables
import jax
import numpy as np
import records
from density_priors import Prior, learned

from numpyro_diffusion import evaluation

_TOY_ROWS = 1000  # of training; a fifth of that for the test


def ours(prior: Prior, test: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """(importance-weighted log densities of test rows, the flow's mean)."""
    key_weights, key_flow = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    weighted = evaluation.importance_weighted(key_weights, prior.distribution, test, num_trajectories=64)
    flow = evaluation.probability_flow(key_flow, prior.distribution, test)
    return np.asarray(weighted.per_point), flow.nats


def compare(train: np.ndarray, test: np.ndarray, name: str, seed: int, priors: Path | None) -> dict[str, float]:
    """Mean test nats a row by method."""
    mean, scale = train.mean(0), train.std(0)
    train, test = (train - mean) / scale, (test - mean) / scale
    prior = learned(train, name, seed, priors)
    weighted, flow = ours(prior, test, seed)
    found = {"ours": float(weighted.mean()), "ours_flow": flow, "seconds": prior.seconds}
    for method in ("gaussian", "mixture", "kernel_density"):
        found[method] = float(getattr(baselines, method)(train, test).log_density.mean())
    for method in baselines.FLOWS:
        found[method] = float(baselines.flow(method, train, test, seed).log_density.mean())
        found[f"{method}_equal"] = float(baselines.flow(method, train, test, seed, prior.seconds).log_density.mean())
    return found


def summary(name: str, by_seed: dict[str, dict[str, float]], num_rows: int, num_columns: int) -> list[dict[str, Any]]:
    """The records of one table."""
    runs = list(by_seed.values())
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}

    def difference(other: str) -> tuple[float, float]:
        values = np.asarray([run["ours"] - run[other] for run in runs])
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
        return float(values.mean()), error

    settings = {"rows": num_rows, "columns": num_columns, "seeds": len(runs), "means": mean}
    raw = {**settings, "runs": by_seed}
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
            **(raw if end == "gaussian" else settings),
        )
        for end, (method, words, limit) in compared.items()
    ]
    if np.isfinite(error):
        entries.append(records.record(f"density_{name}_minus_gaussian_se", error, "nats a row"))
    return entries


def toy(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows of a toy."""
    rows, _ = tables.TOYS[name](np.random.default_rng(seed), _TOY_ROWS + _TOY_ROWS // 5)
    return rows[:_TOY_ROWS], rows[_TOY_ROWS:]


def main() -> None:
    parser = records.parser(__doc__, "density.json")
    parser.add_argument("--tables", nargs="+", default=[*tables.TABLES, *tables.TOYS], help="which")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of splits and training")
    parser.add_argument("--priors", type=Path, help="a directory for the learned priors, shared with missing.py")
    parser.add_argument("--csv", help="a file with a header line, in place of the tables")
    arguments = parser.parse_args()
    loaders = {Path(arguments.csv).stem: lambda: tables.read_csv(arguments.csv)} if arguments.csv else None
    for name in loaders or arguments.tables:
        runs = records.earlier_runs(f"density_{name}_minus_gaussian", arguments.json)
        for seed in arguments.seeds:
            if name in tables.TOYS:
                train, test = toy(name, seed)
            else:
                load = loaders[name] if loaders else lambda name=name: tables.off_the_grid(tables.TABLES[name]())
                train, test = tables.split(load(), seed)
            if str(seed) in runs:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # "too few rows" is what the table shows
                runs[str(seed)] = compare(train, test, name, seed, arguments.priors)
            print(name, seed, {key: round(value, 3) for key, value in runs[str(seed)].items()}, flush=True)
            found = summary(name, runs, len(train) + len(test), train.shape[1])
            records.write(records.merge(found, arguments.json), arguments.json)
            records.print_table(found)


if __name__ == "__main__":
    main()
