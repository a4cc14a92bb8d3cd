r"""Nonlinear likelihoods in the plane, whose posterior is integrated on a grid.

    ring       y ~ Normal(|x|, 0.3)
    counts     y_j ~ Poisson(exp(1 + <b_j, x> / 6)), j = 1..3, b_j of length 1
    tails      y ~ StudentT(3, A x, 0.5), y in R^2

under a prior of four unit Gaussians (``mixture_problems.planar_problem``). A cell of the grid is 0.04 wide: a draw is a
cell with its posterior probability, and a uniform place in it.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import mixture_problems
import numpy as np
import numpyro
import numpyro.distributions as dist
from mixture_problems import MixtureProblem

NAMES = ["ring", "counts", "tails"]
WIDTH, HALF_SIDE = 0.04, 22.0


@dataclasses.dataclass(frozen=True, eq=False)
class GridLaw:
    """A distribution on square cells of side WIDTH.

    Attributes:
        centres: shape (cells, 2).
        log_mass: shape (cells,); not normalised, its sum is the evidence.
    """

    centres: np.ndarray
    log_mass: np.ndarray

    @cached_property
    def log_evidence(self) -> float:
        """The logarithm of the total mass, in nats."""
        return float(mixture_problems.log_sum_exp(self.log_mass))

    def draws(self, seed: int, count: int) -> np.ndarray:
        """Independent draws, shape (count, 2)."""
        rng = np.random.default_rng(seed)
        cumulative = np.cumsum(np.exp(self.log_mass - self.log_evidence))
        cell = np.searchsorted(cumulative, rng.uniform(size=count) * cumulative[-1])
        return self.centres[cell] + WIDTH * (rng.uniform(size=(count, 2)) - 0.5)


@dataclasses.dataclass(frozen=True, eq=False)
class GridProblem:
    """One problem.

    Attributes:
        base: whose prior is used; its own observation is not.
        likelihood: from x, shape (..., 2), to the distribution of y.
        y: the observation.
    """

    base: MixtureProblem
    likelihood: Callable[[Any], dist.Distribution]
    y: np.ndarray

    @cached_property
    def posterior(self) -> GridLaw:
        """p(x, y) on the grid."""
        axis = np.arange(-HALF_SIDE, HALF_SIDE, WIDTH) + 0.5 * WIDTH
        x = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
        squares = sum((x[:, i, None] - self.base.means[:, i]) ** 2 for i in range(2))
        log_prior = mixture_problems.log_sum_exp(np.log(self.base.weights) - 0.5 * squares) - math.log(2 * math.pi)
        log_r = jax.jit(lambda x: self.likelihood(x).log_prob(jnp.asarray(self.y)))(jnp.asarray(x, float))
        return GridLaw(x, log_prior + np.asarray(log_r, np.float64) + 2 * math.log(WIDTH))

    def model(self, prior: dist.Distribution) -> Callable[..., None]:
        """The plain NumPyro model, to be run on ``y``."""

        def model(y: Any = None) -> None:
            numpyro.sample("y", self.likelihood(numpyro.sample("x", prior)), obs=y)

        return model


def grid_problem(seed: int, name: str) -> GridProblem:
    """The problem of a seed, with an observation of the kind ``name``."""
    base = mixture_problems.planar_problem(seed, 2, sigma=1.0)
    angles = np.random.default_rng([seed, 5]).uniform(0, 2 * math.pi, size=3)
    directions = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)]), float)
    matrix = jnp.asarray(base.matrix, float)
    likelihood: dict[str, Callable[[Any], dist.Distribution]] = {
        # The 1e-6 gives the radius a gradient at the origin.
        "ring": lambda x: dist.Normal(jnp.sqrt((x**2).sum(-1) + 1e-6), 0.3),
        "counts": lambda x: dist.Poisson(jnp.exp(1 + x @ directions / 6)).to_event(1),
        "tails": lambda x: dist.StudentT(3.0, x @ matrix.T, 0.5).to_event(1),
    }
    y = likelihood[name](jnp.asarray(base.truth, float)).sample(jax.random.key(seed))
    return GridProblem(base, likelihood[name], np.asarray(y))
