r"""Joint models of x and one more unknown v > 0, whose marginal posterior is known by quadrature.

    amplitude    v ~ LogNormal(0, 1/2),   y ~ Normal(v A x, sigma)
    sigma        v ~ HalfNormal(2),       y ~ Normal(A x, v)

with x from a mixture of four Gaussians in the plane. Given v the evidence p(y | v) is a sum of Gaussians in closed form
(:mod:`mixture_problems`), so p(v | y) is a function on a line, integrated here on a fine grid in float64.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import mixture_problems
import numpy as np
import numpyro
import numpyro.distributions as dist
from mixture_problems import MixtureProblem

# Relative steps of 0.3 %: far below the posteriors' widths. Either prior leaves less than 1e-6 outside.
GRID = np.geomspace(1e-6, 40.0, 6001)

OBSERVED = {"amplitude": 3, "sigma": 6}
PRIOR = {"amplitude": dist.LogNormal(0.0, 0.5), "sigma": dist.HalfNormal(2.0)}


@dataclasses.dataclass(frozen=True, eq=False)
class Marginal:
    """A density on a grid: its moments, quantiles, draws, and the distance of other draws to it.

    Args:
        grid: points in rising order.
        log_density: there, up to a constant.
    """

    grid: np.ndarray
    log_density: np.ndarray

    @cached_property
    def cumulative(self) -> np.ndarray:
        """The distribution function on the grid, by the trapezoidal rule."""
        density = np.exp(self.log_density - self.log_density.max())
        areas = 0.5 * (density[1:] + density[:-1]) * np.diff(self.grid)
        total = np.concatenate([[0.0], np.cumsum(areas)])
        return total / total[-1]

    @cached_property
    def standard_deviation(self) -> float:
        """Of the distribution on the grid."""
        shares, centres = np.diff(self.cumulative), 0.5 * (self.grid[1:] + self.grid[:-1])
        mean = shares @ centres
        return math.sqrt(shares @ (centres - mean) ** 2)

    def quantiles(self, levels: np.ndarray) -> np.ndarray:
        """The inverse of the distribution function, linear between grid points."""
        rising = np.concatenate([[True], np.diff(self.cumulative) > 0])
        return np.interp(levels, self.cumulative[rising], self.grid[rising])

    def draws(self, seed: int, count: int) -> np.ndarray:
        """Independent draws, shape (count,)."""
        return self.quantiles(np.random.default_rng(seed).uniform(size=count))

    def distance(self, draws: Any) -> float:
        """The first Wasserstein distance of draws to this distribution, in its standard deviations."""
        draws = np.sort(np.asarray(draws, np.float64).ravel())
        levels = (np.arange(len(draws)) + 0.5) / len(draws)
        return float(np.abs(draws - self.quantiles(levels)).mean()) / self.standard_deviation

    def floor(self, count: float, repeats: int = 64) -> float:
        """What independent draws, ``count`` of them, have for a distance: mean over repeats."""
        count = max(int(count), 1)
        return float(np.mean([self.distance(self.draws(seed, count)) for seed in range(repeats)]))


@dataclasses.dataclass(frozen=True, eq=False)
class JointProblem:
    """One joint problem.

    Attributes:
        unknown: ``"amplitude"`` or ``"sigma"``: the second unknown, and the name of its site.
        base: the problem at v = 1 for an amplitude; its ``y`` is the observation.
        truth: the v that made the observation.
    """

    unknown: str
    base: MixtureProblem
    truth: float

    def given(self, value: float) -> MixtureProblem:
        """The problem of x alone when v is known."""
        if self.unknown == "amplitude":
            return dataclasses.replace(self.base, matrix=value * self.base.matrix)
        return dataclasses.replace(self.base, sigma=float(value))

    @cached_property
    def marginal(self) -> Marginal:
        """p(v | y)."""
        log_prior = np.asarray(PRIOR[self.unknown].log_prob(GRID), np.float64)
        return Marginal(GRID, log_prior + np.array([self.given(value).exact_log_evidence for value in GRID]))

    def model(self, prior: dist.Distribution) -> Callable[..., None]:
        """The plain NumPyro model, to be run on ``y``."""
        matrix, sigma = jnp.asarray(self.base.matrix, float), jnp.asarray(self.base.sigma, float)
        name, of_unknown = self.unknown, PRIOR[self.unknown]

        def model(y: Any = None) -> None:
            value = numpyro.sample(name, of_unknown)
            mean = numpyro.sample("x", prior) @ matrix.T
            observed = dist.Normal(value * mean, sigma) if name == "amplitude" else dist.Normal(mean, value)
            numpyro.sample("y", observed.to_event(1), obs=y)

        return model


def joint_problem(seed: int, unknown: str) -> JointProblem:
    """The joint problem of a seed: the same numbers on every machine."""
    rng = np.random.default_rng([seed, OBSERVED[unknown]])
    base = mixture_problems.planar_problem(seed, OBSERVED[unknown], sigma=1.0)
    amplitude = math.exp(0.5 * rng.standard_normal()) if unknown == "amplitude" else 1.0
    sigma = 2.0 * abs(rng.standard_normal()) if unknown == "sigma" else base.sigma
    y = amplitude * (base.matrix @ base.truth) + sigma * rng.standard_normal(OBSERVED[unknown])
    return JointProblem(unknown, dataclasses.replace(base, y=y), amplitude if unknown == "amplitude" else sigma)
