"""Engines as functions from a problem to draws, and the biased baselines beside them.

``twisted`` and ``gibbs`` are exact for the T-step model as their budget grows. Those in ``BIASED`` are the posterior at
no budget: guided chains whose draws are taken unweighted, as is common practice.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mixture_problems
import numpy as np
from mixture_problems import MixtureProblem
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import GaussianFactor, MomentMatching, PaperTilt, ReconstructionGuidance, TiltedChain

NUM_STEPS, COUNT = 100, 2000


@dataclasses.dataclass(frozen=True)
class Draws:
    """What an engine returns: draws, the forward passes that one of them took, and what else it knows."""

    x: np.ndarray
    network_calls: float
    facts: dict[str, float] = dataclasses.field(default_factory=dict)


Engine = Callable[[MixtureProblem], Draws]


def twisted(
    twist: str, num_particles: int, num_islands: int = 1, count: int = COUNT, num_steps: int = NUM_STEPS
) -> Engine:
    """TwistedSMC, ``num_islands`` of ``num_particles``; ``count`` draws."""

    def engine(problem: MixtureProblem) -> Draws:
        smc = nd.infer.TwistedSMC(
            problem.model(mixture_problems.prior(problem, num_steps)),
            num_particles=num_particles,
            num_islands=num_islands,
            twist=twist,
            progress_bar=False,
        )
        smc.run(jax.random.key(problem.seed), jnp.asarray(problem.y, float))
        if twist == "auto":
            print(f"chosen: {smc.chosen_twist}", flush=True)
        x = smc.get_samples(jax.random.key(problem.seed + 1), num_samples=count)["x"]
        error = float(smc.log_evidence) - problem.exact_log_evidence
        calls = float(smc.num_network_calls) * num_particles * num_islands / count
        return Draws(np.asarray(x), calls, {"evidence_error": error, "min_ess": float(smc.min_ess)})

    return engine


def tempered(num_particles: int, num_islands: int, num_steps: int = NUM_STEPS) -> Engine:
    """TemperedSMC in the noises of a chain that matches moments by the data's scale; all its particles are draws."""

    def engine(problem: MixtureProblem) -> Draws:
        data = (jnp.asarray(value, float) for value in (problem.matrix, problem.y, problem.sigma))
        smc = nd.infer.TemperedSMC(
            problem.model(mixture_problems.prior(problem, num_steps)),
            guidance={"x": MomentMatching(*data, covariance="scale")},
            num_particles=num_particles,
            num_islands=num_islands,
            progress_bar=False,
        )
        result = smc.run(jax.random.key(problem.seed), jnp.asarray(problem.y, float))
        facts = {
            "evidence_error": result.log_evidence - problem.exact_log_evidence,
            "evidence_standard_error": result.log_evidence_error,
            "min_ess": result.min_ess,
            "temperatures": float(result.num_temperatures.mean()),
            "acceptance": result.last_accept_prob,
        }
        return Draws(np.asarray(smc.get_samples()["x"]), 3 * num_steps * smc.num_gradients, facts)

    return engine


def gibbs(
    twist: str = "tempered",
    num_particles: int = 16,
    num_warmup: int = 200,
    count: int = COUNT,
    num_steps: int = NUM_STEPS,
) -> Engine:
    """DiffusionGibbs on x alone: one chain."""

    def engine(problem: MixtureProblem) -> Draws:
        model = problem.model(mixture_problems.prior(problem, num_steps))
        kernel = nd.infer.DiffusionGibbs(model, num_particles=num_particles, twist=twist)
        mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=count, progress_bar=False)
        mcmc.run(jax.random.key(problem.seed), jnp.asarray(problem.y, float))
        x = np.asarray(mcmc.get_samples()["x"], np.float64)
        per_iteration = effective_sample_size(x[None]) / count
        facts = {"ess_per_iteration": per_iteration.mean(), "lowest_ess_per_iteration": per_iteration.min()}
        calls = (num_particles + 1) * num_steps * (num_warmup + count) / count
        return Draws(x, calls, {name: float(value) for name, value in facts.items()})

    return engine


def log_likelihood(matrix: jax.Array, y: jax.Array, sigma: jax.Array, x: jax.Array) -> jax.Array:
    """The logarithm of r(x), up to a constant."""
    return -0.5 * (((y - matrix @ x) / sigma) ** 2).sum()


_sample_tilted = jax.jit(
    lambda chain, tilt, key, count: TiltedChain(chain, tilt).sample_last(key, (count,)), static_argnums=3
)


def guided(make_tilt: Callable[..., Any], calls_per_step: float, num_steps: int = NUM_STEPS) -> Engine:
    """Draws of a tilted chain, unweighted: not the posterior."""

    def engine(problem: MixtureProblem) -> Draws:
        prior = mixture_problems.prior(problem, num_steps)
        tilt = make_tilt(*(jnp.asarray(value, float) for value in (problem.matrix, problem.y, problem.sigma)))
        x = _sample_tilted(prior.chain, tilt, jax.random.key(problem.seed), COUNT)
        return Draws(np.asarray(x), calls_per_step * num_steps)

    return engine


def exact_product(num_steps: int = NUM_STEPS) -> Engine:
    """Every step times the likelihood, exactly: in the coordinates in which the matrix is diagonal."""

    def engine(problem: MixtureProblem) -> Draws:
        left, values, rotation = np.linalg.svd(problem.matrix)  # x = rotation^T z
        rotated = dataclasses.replace(problem, means=problem.means @ rotation.T, matrix=problem.matrix @ rotation.T)
        seen = problem.dimension - len(values)
        value = np.concatenate([(problem.y @ left) / values, np.zeros(seen)])
        scale = np.concatenate([problem.sigma / values, np.full(seen, np.inf)])
        tilt = GaussianFactor(jnp.asarray(value, float), jnp.asarray(scale, float))
        prior = mixture_problems.prior(rotated, num_steps)
        z = _sample_tilted(prior.chain, tilt, jax.random.key(problem.seed), COUNT)
        return Draws(np.asarray(z, np.float64) @ rotation, num_steps)

    return engine


def paper_tilt(exponent: str) -> Callable[..., Any]:
    """The paper's tilt as a function of the problem's arrays."""
    return lambda *data: PaperTilt(jax.tree_util.Partial(log_likelihood, *data), exponent=exponent)


BIASED: dict[str, Engine] = {
    "paper_constant": guided(paper_tilt("constant"), 1),
    "paper_annealed": guided(paper_tilt("annealed"), 1),
    "exact_product": exact_product(),
    "dps": guided(lambda *data: ReconstructionGuidance(jax.tree_util.Partial(log_likelihood, *data)), 3),
    "pigdm": guided(lambda *data: MomentMatching(*data, covariance="scale"), 3),
    "mmps": guided(lambda *data: MomentMatching(*data, covariance="jacobian"), 3),
}
