"""How time grows: with T, the number of draws, the dimension and the particles, as slopes in log-log axes.

The slope is that of the least-squares line through (log size, log seconds), seconds the median over rounds; each round
runs all sizes, so that what disturbs the machine disturbs them alike. 1 is proportional; below 1, a part does not grow.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from records import record
from speed_problems import Problem, time_fit

import numpyro_diffusion as nd

NUM_STEPS = (64, 128, 256, 512, 1024)
DRAWS = (2048, 4096, 8192, 16384, 32768)
DIMENSIONS = (32, 128, 512, 2048)
PARTICLES = (1024, 2048, 4096, 8192, 16384)
BATCHES = (128, 256, 512, 1024, 2048)


def sampling_seconds(problem: Problem, draws: int, seed: int) -> Callable[[], float]:
    """A function that times one batch of draws; compiled here."""
    prior = problem.prior(problem.params(seed))
    draw = jax.jit(lambda prior, key: prior.sample(key, (draws,)))
    key = jax.random.key(seed + 1)
    return _timed(lambda: draw(prior, key))


def smc_seconds(particles: int, seed: int, num_steps: int = 100) -> Callable[[], float]:
    """A function that times one whole run of TwistedSMC, its checks and evidence included; compiled here."""
    prior = Problem("mlp", num_steps).prior(Problem("mlp", num_steps).params(seed))

    def model(y: Any = None) -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], 0.1), obs=y)

    smc = nd.infer.TwistedSMC(model, particles, 1, progress_bar=False)
    key, y = jax.random.key(seed + 1), jnp.asarray(0.5)

    def run() -> Any:
        smc.run(key, y)
        return smc.log_evidence

    return _timed(run)


def training_seconds(batch: int, seed: int) -> Callable[[], float]:
    """A function that trains anew for a moment and returns seconds per step."""
    problem = Problem("mlp", batch_size=batch)
    data = problem.data(seed)
    return lambda: time_fit(problem, data, seed, 300).seconds_per_step


def _timed(run: Callable[[], Any]) -> Callable[[], float]:
    jax.block_until_ready(run())

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    return seconds


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The exponent of the power of size that fits seconds best."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def growth(
    name: str,
    sizes: Sequence[int],
    make: Callable[[int], Callable[[], float]],
    rounds: int,
    limit: str = "",
    **settings: Any,
) -> dict[str, Any]:
    """The record of one slope.

    Args:
        name: of the record.
        sizes: what grows.
        make: a size to a function that returns seconds; it may compile.
        rounds: how many.
        limit: the figure to reach.
        **settings: to report.
    """
    start = time.perf_counter()
    runs = [make(size) for size in sizes]
    times: list[list[float]] = [[] for _ in sizes]
    for index in range(rounds):
        order = range(len(sizes)) if index % 2 == 0 else reversed(range(len(sizes)))
        for which in order:
            times[which].append(runs[which]())
    medians = [statistics.median(column) for column in times]
    if not all(math.isfinite(value) and value > 0 for value in medians):
        raise RuntimeError(f"Expected positive seconds; got {medians}.")
    return record(
        name,
        slope(sizes, medians),
        "slope",
        limit=limit,
        seconds=time.perf_counter() - start,
        sizes=list(sizes),
        seconds_by_size=medians,
        rounds=rounds,
        **settings,
    )


def run(seed: int, rounds: int) -> list[dict[str, Any]]:
    return [
        growth(
            "sampling_time_slope_in_T",
            NUM_STEPS,
            lambda size: sampling_seconds(Problem("mlp", size), 4096, seed),
            rounds,
            "<= 1.02",
            draws=4096,
        ),
        growth(
            "sampling_time_slope_in_draws",
            DRAWS,
            lambda size: sampling_seconds(Problem("mlp"), size, seed),
            rounds,
            T=100,
        ),
        growth(
            "sampling_time_slope_in_dimension",
            DIMENSIONS,
            lambda size: sampling_seconds(Problem("mlp", dimension=size), 1024, seed),
            rounds,
            T=100,
            draws=1024,
        ),
        growth(
            "smc_time_slope_in_particles",
            PARTICLES,
            lambda size: smc_seconds(size, seed),
            rounds,
            T=100,
        ),
        growth(
            "training_time_slope_in_batch",
            BATCHES,
            lambda size: training_seconds(size, seed),
            max(3, rounds // 3),
            T=100,
        ),
    ]
