"""Joint posteriors of x and an unknown amplitude, or an unknown noise scale, against quadrature.

    python benchmarks/posterior_joint.py --seeds 0 1 --unknowns sigma

The figure is the first Wasserstein distance of the unknown's draws to its exact marginal posterior, in posterior
standard deviations, mean over problems (``joint_problems``). Beside each stands its floor: the distance of independent
exact draws, as many as the engine's draws were worth. Rows named ``biased`` replace the exact update of x by an
uncorrected guided draw.
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mixture_problems
import numpy as np
from joint_problems import PRIOR, JointProblem, joint_problem
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC
from records import parser, print_table, record, write

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import MomentMatching, ReconstructionGuidance, TiltedChain

# Noise-to-signal ratios: from a tenth of a mode's width, which a small sigma resolves, to 15 times the data's reach.
NUM_STEPS, SIGMA_MIN, SIGMA_MAX = 50, 0.1, 300.0
UPDATE_GRID = np.geomspace(1e-3, 40.0, 1000)


class Draws(NamedTuple):
    """Draws of the unknown, and how many independent ones they are worth."""

    values: np.ndarray
    effective: float


def diffusion_prior(problem: JointProblem) -> nd.Diffusion:
    """The prior of x."""
    return mixture_problems.prior(problem.base, NUM_STEPS, SIGMA_MIN, SIGMA_MAX)


def observation(problem: JointProblem) -> jax.Array:
    return jnp.asarray(problem.base.y, float)


def gibbs(problem: JointProblem, count: int, num_chains: int = 64, num_warmup: int = 100) -> Draws:
    """DiffusionGibbs with NUTS on the unknown: ``count`` draws from each chain."""
    model = problem.model(diffusion_prior(problem))
    kernel = nd.infer.DiffusionGibbs(model, num_particles=16, twist="gaussian")
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=count,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(problem.base.seed), observation(problem))
    values = np.asarray(mcmc.get_samples(group_by_chain=True)[problem.unknown], np.float64)
    return Draws(values, float(effective_sample_size(values)))


def twisted(problem: JointProblem, num_islands: int, num_particles: int = 32) -> Draws:
    """TwistedSMC, the unknown drawn from its prior, once for each island."""
    smc = nd.infer.TwistedSMC(
        problem.model(diffusion_prior(problem)),
        num_particles=num_particles,
        num_islands=num_islands,
        twist="gaussian",
        progress_bar=False,
    )
    smc.run(jax.random.key(problem.base.seed), observation(problem))
    _, log_weights = smc.get_weighted_samples()
    by_island = np.exp(np.asarray(log_weights, np.float64)).reshape(num_islands, -1).sum(1)
    draws = smc.get_samples(jax.random.key(problem.base.seed + 1), num_samples=num_islands)[problem.unknown]
    return Draws(np.asarray(draws), by_island.sum() ** 2 / (by_island**2).sum())


def log_likelihood(matrix: jax.Array, y: jax.Array, sigma: jax.Array, x: jax.Array) -> jax.Array:
    """The logarithm of r(x), up to a constant."""
    return -0.5 * (((y - matrix @ x) / sigma) ** 2).sum()


def guided_gibbs(problem: JointProblem, guidance: str, count: int = 250, num_chains: int = 64) -> Draws:
    """Gibbs whose draw of x given the unknown is a guided chain's, unweighted; the other update is exact. Biased."""
    chain, y = diffusion_prior(problem).chain, observation(problem)
    matrix, sigma = (jnp.asarray(value, float) for value in (problem.base.matrix, problem.base.sigma))
    grid = jnp.asarray(UPDATE_GRID, float)
    cells = jnp.log(jnp.gradient(grid))

    def update(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        value, key = carry
        key, key_x, key_value = jax.random.split(key, 3)
        seen = (value * matrix, y, sigma) if problem.unknown == "amplitude" else (matrix, y, value)
        if guidance == "mmps":
            tilt = MomentMatching(*seen)
        else:
            tilt = ReconstructionGuidance(jax.tree_util.Partial(log_likelihood, *seen))
        mean = matrix @ TiltedChain(chain, tilt).sample_last(key_x)
        scale = sigma if problem.unknown == "amplitude" else grid[:, None]
        mean = grid[:, None] * mean if problem.unknown == "amplitude" else mean
        log_density = jax.scipy.stats.norm.logpdf(y, mean, scale).sum(-1) + PRIOR[problem.unknown].log_prob(grid)
        value = grid[jax.random.categorical(key_value, log_density + cells)]
        return (value, key), value

    def run(key: jax.Array) -> jax.Array:
        start = (jnp.asarray(1.0), key)
        return jax.lax.scan(update, start, None, length=count + 50)[1][50:]

    values = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(problem.base.seed), num_chains)))
    return Draws(values, float(effective_sample_size(values)))


def distance_record(
    name: str, limit: str, problems: list[JointProblem], draws: list[Draws], seconds: float, **settings: Any
) -> dict[str, Any]:
    """The distance of the unknown's draws, mean over problems, beside the floor of as many independent draws."""
    marginals = [problem.marginal for problem in problems]
    distances = [marginal.distance(one.values) for marginal, one in zip(marginals, draws, strict=True)]
    floors = [marginal.floor(one.effective) for marginal, one in zip(marginals, draws, strict=True)]
    for problem, one, distance, floor in zip(problems, draws, distances, floors, strict=True):
        print(f"{name:36} problem {problem.base.seed:4} {distance:.3f} floor {floor:.3f} ESS {one.effective:.0f}")
    return record(
        name,
        float(np.mean(distances)),
        "sd",
        baseline=float(np.mean(floors)),
        baseline_name="independent exact draws of the same effective number",
        limit=limit,
        seconds=seconds,
        by_problem=distances,
        effective=[one.effective for one in draws],
        draws=[one.values.size for one in draws],
        seeds=[problem.base.seed for problem in problems],
        T=NUM_STEPS,
        **settings,
    )


# An amplitude and the size of x change only together, which Gibbs does in small steps: fewer effective draws a sweep.
SWEEPS = {"amplitude": 1500, "sigma": 300}


def rows(unknown: str, seeds: list[int], budget: float = 1.0) -> list[dict[str, Any]]:
    """All engines on one kind of unknown."""
    problems = [joint_problem(seed, unknown) for seed in seeds]
    engines = {
        f"joint_{unknown}_w1_over_sd": ("<= 0.05", lambda problem: gibbs(problem, int(SWEEPS[unknown] * budget))),
        f"joint_{unknown}_islands_w1_over_sd": ("<= 0.05", lambda problem: twisted(problem, int(4096 * budget))),
        f"biased_{unknown}_mmps_w1_over_sd": ("", lambda problem: guided_gibbs(problem, "mmps")),
        f"biased_{unknown}_dps_w1_over_sd": ("", lambda problem: guided_gibbs(problem, "dps")),
    }
    records = []
    for name, (limit, engine) in engines.items():
        start = time.perf_counter()
        draws = [engine(problem) for problem in problems]
        records.append(distance_record(name, limit, problems, draws, time.perf_counter() - start))
    return records


def main(arguments: argparse.Namespace) -> None:
    records = [entry for unknown in arguments.unknowns for entry in rows(unknown, arguments.seeds, arguments.budget)]
    print_table(records)
    write(records, arguments.json)


if __name__ == "__main__":
    options = parser(__doc__, "posterior_joint.json")
    options.add_argument("--unknowns", nargs="+", default=["amplitude", "sigma"], choices=["amplitude", "sigma"])
    options.add_argument("--seeds", nargs="+", type=int, default=list(range(100, 104)), help="which problems")
    options.add_argument("--budget", type=float, default=1.0, help="multiplies the number of draws")
    main(options.parse_args())
