"""Missing cells of real tables: error and 90% intervals, by a learned prior, by a flow with NUTS, by one Gaussian.

    python benchmarks/missing.py
    python benchmarks/missing.py --tables wine --seeds 0 1

For each split of ``density_tables``, standardised by its training rows: the prior is learned on these; 12 test rows
lose 30% of their cells at random, and what is left is seen with noise .1. Ours is DiffusionHMC on
``infer.observe_entries``; FlowJAX's spline flow is the prior of the same rows under NUTS in the flow's own noises, on
the seeds of ``--flow-seeds`` only, since a run takes up to ten minutes; one Gaussian has its posterior in closed form.
A record's value is over the missing cells of all seeds. The file of records holds every run: a later call adds seeds
and tables to it, and repeats none.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import density_baselines as baselines
import density_tables as tables
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import records
from density_priors import Prior, learned
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd

NUM_ROWS, SHARE, NOISE = 12, 0.3, 0.1
# Of NUTS: a gradient is one of the whole flow for every row, and without a bound on trees a table takes half an hour.
NUM_FLOW_DRAWS, FLOW_TREE_DEPTH = 200, 7
NUM_CHAINS, NUM_WARMUP, NUM_DRAWS = 4, 200, 500  # draws of each chain


def gaps(rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows with noise, NaN where a cell is missing; every row keeps one cell."""
    rng = np.random.default_rng([seed, 7])
    seen = rng.uniform(size=rows.shape) >= SHARE
    seen[np.arange(len(rows)), rng.integers(rows.shape[1], size=len(rows))] = True
    return np.where(seen, rows + NOISE * rng.normal(size=rows.shape), np.nan)


class Draws(NamedTuple):
    """Draws (n, rows, columns); over the missing cells the smallest effective size and the largest R-hat."""

    values: np.ndarray
    effective_size: float
    rhat: float


def by_diffusion(prior: Prior, table: np.ndarray, seed: int) -> Draws:
    def model(table: np.ndarray) -> None:
        with numpyro.plate("rows", len(table)):
            x = numpyro.sample("x", prior.distribution)
            nd.infer.observe_entries("cells", x, table, NOISE)

    mcmc = MCMC(
        nd.infer.DiffusionHMC(model),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_DRAWS,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed + 100), table)
    chains = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], np.float64)
    cells = chains[..., np.isnan(table)]
    values = chains.reshape(-1, *table.shape)
    return Draws(values, float(effective_sample_size(cells).min()), float(split_gelman_rubin(cells).max()))


def by_flow(train: np.ndarray, table: np.ndarray, seed: int) -> np.ndarray:
    """Draws by NUTS in the noises of a flow."""
    flow = baselines.train_flow("nsf", train, seed).model
    seen = ~np.isnan(table)

    def model() -> None:
        with numpyro.plate("rows", len(table)):
            noise = numpyro.sample("noise", dist.Normal(jnp.zeros(table.shape[1]), 1).to_event(1))
            x = numpyro.deterministic("x", jax.vmap(flow.bijection.transform)(noise))
            numpyro.sample("cells", dist.Normal(x, NOISE).mask(seen).to_event(1), obs=np.where(seen, table, 0))

    mcmc = MCMC(
        NUTS(model, max_tree_depth=FLOW_TREE_DEPTH),
        num_warmup=NUM_FLOW_DRAWS,
        num_samples=NUM_FLOW_DRAWS,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed))
    return np.asarray(mcmc.get_samples()["x"])


def by_gaussian(train: np.ndarray, table: np.ndarray, seed: int) -> np.ndarray:
    """Draws of the exact posterior under one Gaussian."""
    rng = np.random.default_rng(seed)
    mean, covariance = train.mean(0), np.cov(train.T, bias=True)
    draws = np.empty((NUM_CHAINS * NUM_DRAWS, *table.shape))
    for i, row in enumerate(table):
        seen = ~np.isnan(row)
        gain = np.linalg.solve(covariance[np.ix_(seen, seen)] + NOISE**2 * np.eye(seen.sum()), covariance[seen]).T
        spread = covariance - gain @ covariance[seen]
        draws[:, i] = rng.multivariate_normal(mean + gain @ (row[seen] - mean[seen]), spread, len(draws))
    return draws


def judge(draws: np.ndarray, table: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every missing cell: the error of its mean, and whether the 90% interval holds it."""
    missing = np.isnan(table)
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    return (draws.mean(0) - truth)[missing], ((low <= truth) & (truth <= high))[missing]


def run(name: str, seed: int, priors: Path | None, with_flow: bool) -> dict[str, Any]:
    """Errors of the missing cells and whether their intervals hold them, by method; how well the chains agree."""
    train, test = tables.split(tables.off_the_grid(tables.TABLES[name]()), seed)
    mean, scale = train.mean(0), train.std(0)
    train, truth = (train - mean) / scale, ((test - mean) / scale)[:NUM_ROWS]
    table = gaps(truth, seed)
    prior = learned(train, name, seed, priors)
    methods = {"ours": lambda: by_diffusion(prior, table, seed), "gaussian": lambda: by_gaussian(train, table, seed)}
    if with_flow:
        methods["flow"] = lambda: by_flow(train, table, seed)
    found, seconds = {}, {}
    for method, draw in methods.items():
        start = time.perf_counter()
        found[method] = draw()
        seconds[method] = time.perf_counter() - start
    ours = found["ours"]
    found["ours"] = ours.values
    judged = {method: judge(values, table, truth) for method, values in found.items()}
    return {
        "errors": {method: error.tolist() for method, (error, _) in judged.items()},
        "inside": {method: inside.tolist() for method, (_, inside) in judged.items()},
        "min_effective_size": ours.effective_size,
        "rhat": ours.rhat,
        "seconds": seconds,
    }


def summary(name: str, by_seed: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of one table."""
    runs = list(by_seed.values())

    def by_method(what: str) -> dict[str, list[Any]]:
        methods = dict.fromkeys(method for each in runs for method in each[what])
        return {method: [each[what][method] for each in runs if method in each[what]] for method in methods}

    def cells(what: str) -> dict[str, np.ndarray]:
        return {method: np.concatenate(found) for method, found in by_method(what).items()}

    seconds = {method: float(np.mean(found)) for method, found in by_method("seconds").items()}
    coverage = {method: float(inside.mean()) for method, inside in cells("inside").items()}
    rmse = {method: float(np.sqrt(np.mean(error**2))) for method, error in cells("errors").items()}
    settings = {"cells": len(cells("errors")["ours"]), "seeds": len(runs)}
    settings |= {
        "chains": NUM_CHAINS,
        "draws": [NUM_WARMUP, NUM_DRAWS],
        "others": coverage,
        "runs": by_seed,
    }
    name = f"missing_{name}"
    error = {
        "baseline": rmse["gaussian"],
        "baseline_name": "one Gaussian, exact",
        "others": rmse,
        "others_seconds": seconds,
    }
    smallest = min(each["min_effective_size"] for each in runs)
    return [
        records.record(
            f"{name}_coverage_90", coverage["ours"], "share", limit="0.86 to 0.94", seconds=seconds["ours"], **settings
        ),
        records.record(f"{name}_rmse", rmse["ours"], "sd", **error),
        records.record(f"{name}_min_effective_size", smallest, "draws"),
        records.record(f"{name}_rhat", max(each["rhat"] for each in runs), "", limit="<= 1.05"),
    ]


def main() -> None:
    parser = records.parser(__doc__, "missing.json")
    parser.add_argument("--tables", nargs="+", default=list(tables.TABLES), help="which")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of splits, gaps and training")
    parser.add_argument("--priors", type=Path, help="a directory for the learned priors, shared with density.py")
    parser.add_argument("--flow-seeds", nargs="*", type=int, default=[0], help="of the seeds, those with the flow too")
    arguments = parser.parse_args()
    for name in arguments.tables:
        runs = records.earlier_runs(f"missing_{name}_coverage_90", arguments.json)
        for seed in arguments.seeds:
            if str(seed) not in runs:
                runs[str(seed)] = run(name, seed, arguments.priors, seed in arguments.flow_seeds)
                found = summary(name, runs)
                records.write(records.merge(found, arguments.json), arguments.json)
                records.print_table(found)


if __name__ == "__main__":
    main()
