"""The evaluation room: the probability flow against exact densities, the cost of the exact bound, its memory.

    python benchmarks/evaluation.py --rows flow cost memory

- flow: the log density of random mixtures in 2 and 8 dimensions, with the exact denoiser, against the closed form.
- cost: seconds of ``bound`` with one draw a step over seconds of T bare calls of the same network on as many points,
  alternating. The loop of bare calls feeds each output into the next input, so that none can be left out.
- memory: the peak of a process that evaluates 10,000 points at T = 2000, over that of one that evaluates 100.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from records import alternate, parser, print_table, record, write
from speed_problems import Problem
from speed_process import fresh

import numpyro_diffusion as nd

NUM_POINTS, NUM_COMPONENTS, SCALE = 256, 5, 0.5
# From a tenth of the components' scale, where x^0 given x^1 is Gaussian, to where pi is wrong by a thousandth of the
# data's reach: what is left of the error is the flow's.
NUM_STEPS, SIGMA_MIN, SIGMA_MAX = 100, 0.05, 2000.0


def mixture(seed: int, dimension: int) -> tuple[nd.Diffusion, np.ndarray, np.ndarray]:
    """A model with its exact denoiser, draws of its data, and their exact log densities in float64."""
    rng = np.random.default_rng([seed, dimension])
    means = 2.0 * rng.standard_normal((NUM_COMPONENTS, dimension))
    weights = rng.dirichlet(np.full(NUM_COMPONENTS, 3.0))
    x = means[rng.choice(NUM_COMPONENTS, p=weights, size=NUM_POINTS)]
    x = (x + SCALE * rng.standard_normal(x.shape)).astype(np.float32)
    schedule = nd.schedules.log_snr(NUM_STEPS, SIGMA_MIN, SIGMA_MAX)
    kernel = nd.GaussianKernel(schedule, parameterization="x0", variance="denoiser", data_scale=2.0)
    transition = nd.analytic.gaussian_mixture(kernel, jnp.asarray(means, float), SCALE, jnp.asarray(weights, float))
    logits = np.log(weights) - 0.5 * ((x[:, None] - means) ** 2).sum(-1) / SCALE**2
    largest = logits.max(1)
    exact = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
    return nd.Diffusion(kernel, transition), x, exact - dimension * math.log(SCALE * math.sqrt(2 * math.pi))


def flow_rows(seeds: list[int]) -> list[dict[str, Any]]:
    """Mean absolute error of the probability flow's log density over points and problems."""
    records = []
    for dimension in (2, 8):
        start, errors, means = time.perf_counter(), [], []
        for seed in seeds:
            model, x, exact = mixture(seed, dimension)
            found = nd.evaluation.probability_flow(jax.random.key(seed), model, x)
            errors.append(float(np.abs(found.per_point - exact).mean()))
            means.append(float((found.per_point - exact).mean()))
        records.append(
            record(
                f"mixture_pf_ode_error_nats_d{dimension}",
                float(np.mean(errors)),
                "nats, mean abs",
                limit="<= 0.01",
                seconds=time.perf_counter() - start,
                errors=errors,
                mean_errors=means,
                seeds=seeds,
                T=NUM_STEPS,
                points=NUM_POINTS,
                solver=repr(nd.evaluation.ProbabilityFlow()),
            )
        )
    return records


def untrained(num_steps: int, seed: int = 0) -> nd.Diffusion:
    """The speed benchmarks' network with random parameters, as a distribution."""
    problem = Problem("mlp", num_steps)
    return problem.prior(problem.params(seed))


def cost_rows(name: str, seed: int, num_points: int, num_steps: int, rounds: int = 15) -> list[dict[str, Any]]:
    """Seconds of the exact K, all of its checks and results included, over those of its network calls."""
    problem = Problem(name, num_steps)
    model = problem.prior(problem.params(seed))
    x = np.random.default_rng(seed).standard_normal((num_points, *model.event_shape)).astype(np.float32)
    key, size = jax.random.key(seed + 1), num_points // 2

    @jax.jit
    def calls(transition: nd.Transition, x: jax.Array) -> jax.Array:
        def call(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            first, second = transition(x_t, t)
            return 0.9 * x_t + 0.1 * (first + second), None

        return jax.lax.scan(call, x, jnp.arange(1, num_steps + 1))[0]

    def bare() -> list[np.ndarray]:
        chunks = [jnp.asarray(x[start : start + size]) for start in range(0, num_points, size)]
        return [np.asarray(calls(model.transition, chunk)) for chunk in chunks]

    def ours() -> Any:
        return nd.evaluation.bound(key, model, x, num_draws=1, chunk_size=size).per_point

    ours(), bare()  # compile
    start = time.perf_counter()
    mine, theirs, ratio = alternate(ours, bare, rounds)
    return [
        record(
            f"exact_K_cost_over_network_calls_{name}",
            ratio,
            "ratio",
            baseline=theirs,
            baseline_name="T network calls on as many points, seconds",
            ratio=ratio,
            limit="<= 1.1",
            seconds=time.perf_counter() - start,
            ours_seconds=mine,
            T=num_steps,
            points=num_points,
            chunk_size=size,
            rounds=rounds,
            seed=seed,
        )
    ]


_EVALUATE = """
import sys; sys.path.insert(0, {path!r})
import jax, numpy as np, numpyro_diffusion as nd
from evaluation import untrained
from speed_process import peak_bytes
model = untrained(2000)
x = np.random.default_rng(0).standard_normal(({points}, *model.event_shape)).astype(np.float32)
nd.evaluation.bound(jax.random.key(0), model, x, num_draws=1)
print(peak_bytes())
"""


def memory_rows() -> list[dict[str, Any]]:
    """Peaks of whole processes: many points over few."""
    start = time.perf_counter()
    path = str(Path(__file__).parent)
    few, many = (fresh(_EVALUATE.format(path=path, points=points)) for points in (100, 10_000))
    return [
        record(
            "exact_K_memory_ratio_points",
            many / few,
            "ratio",
            baseline=few / 2**20,
            baseline_name="peak of the process with 100 points, MiB",
            ratio=many / few,
            limit="<= 1.5",
            seconds=time.perf_counter() - start,
            mebibytes_of_10_000=many / 2**20,
            T=2000,
        )
    ]


ROWS = ["flow", "cost", "memory"]


def main(arguments: argparse.Namespace) -> None:
    records: list[dict[str, Any]] = []
    if "flow" in arguments.rows:
        records += flow_rows(arguments.seeds)
    if "cost" in arguments.rows:
        records += cost_rows("mlp", arguments.seeds[0], 4096, 100) + cost_rows("unet", arguments.seeds[0], 256, 20)
    if "memory" in arguments.rows:
        records += memory_rows()
    print_table(records)
    write(records, arguments.json)


if __name__ == "__main__":
    options = parser(__doc__, "evaluation.json")
    options.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    options.add_argument("--seeds", nargs="+", type=int, default=list(range(100, 108)), help="which problems")
    main(options.parse_args())
