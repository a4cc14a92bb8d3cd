r"""Linear inverse problems whose posterior is known exactly, and the distance to it.

The benchmark of Cardoso et al. 2024: the prior is a mixture of 25 unit Gaussians in R^d with means
(8i, 8j, 8i, 8j, ...), i and j in -2..2, and random weights; the observation is y = A x* + sigma eps, with
A = U S V^T, U and V those of a standard normal matrix of size (observed, d), S uniform on [0, 1] in falling order,
sigma uniform on [0, largest of S], and x* from the prior. With it, in closed form,

    p(x | y)   = sum_k w_k' N(x; m_k, C),
    C          = I - V diag(S^2 / (S^2 + sigma^2)) V^T
    m_k        = mu_k + V diag(S / (S^2 + sigma^2)) U^T (y - A mu_k)
    w_k'       proportional to w_k N(y; A mu_k, A A^T + sigma^2 I),  whose sum is the evidence p(y)

all in float64. The diffusion prior is the exact denoiser of this mixture: what is wrong in a posterior is the engine.

The weights are normalised draws of chi-square(1), as in the paper, each draw at least 1e-4: a smaller one is a mode
that no count of draws here can see, and only its logarithm would be felt.

References: Cardoso, Janati el Idrissi, Le Corff, Moulines 2024, Monte Carlo guided diffusion for Bayesian linear
inverse problems, Appendix B.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

SMALLEST_WEIGHT = 1e-4
# Noise-to-signal ratios of the prior's chain: from half the modes' standard deviation, where x^0 given x^1 is Gaussian,
# so that the last step is exact, to 25 times the data's reach of 16, so that the start shows less than a twentieth.
SIGMA_MIN, SIGMA_MAX = 0.5, 400.0


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
    """sum_k weights_k N(means_k, I - basis diag(removed) basis^T): unit components, narrowed in a few directions.

    Attributes:
        weights: shape (components,), sum 1.
        means: shape (components, d).
        basis: orthonormal columns, shape (d, directions).
        scale: standard deviation along each column of the basis, shape (directions,).
    """

    weights: np.ndarray
    means: np.ndarray
    basis: np.ndarray
    scale: np.ndarray

    def draws(self, seed: int, count: int) -> np.ndarray:
        """Independent draws, float64, shape (count, d)."""
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.weights), size=count, p=self.weights)
        noise = rng.standard_normal((count, self.means.shape[1]))
        along = noise @ self.basis
        return self.means[component] + noise + (along * (self.scale - 1)) @ self.basis.T

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Of points of shape (count, d), shape (count,)."""
        offset = x[:, None] - self.means
        along = offset @ self.basis
        squares = (offset**2).sum(-1) + (along**2 * (self.scale**-2 - 1)).sum(-1)
        log_norm = -0.5 * self.means.shape[1] * math.log(2 * math.pi) - np.log(self.scale).sum()
        return log_sum_exp(np.log(self.weights) - 0.5 * squares) + log_norm


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureProblem:
    """One problem: prior, observation and exact posterior; no part of it knows a diffusion but :meth:`model`.

    Attributes:
        seed: what it was made from.
        means: of the prior's components, shape (components, d).
        weights: of the prior's components, shape (components,).
        matrix: A, shape (observed, d).
        sigma: standard deviation of the observation.
        truth: x*, shape (d,).
        y: the observation, shape (observed,).
    """

    seed: int
    means: np.ndarray
    weights: np.ndarray
    matrix: np.ndarray
    sigma: float
    truth: np.ndarray
    y: np.ndarray

    @property
    def dimension(self) -> int:
        """The dimension of x."""
        return self.means.shape[1]

    @cached_property
    def posterior(self) -> GaussianMixture:
        """p(x | y)."""
        left, values, right = self._svd
        total = values**2 + self.sigma**2
        residual = (self.y - self.means @ self.matrix.T) @ left
        log_weights = self._log_component_evidence
        return GaussianMixture(
            weights=np.exp(log_weights - log_sum_exp(log_weights)),
            means=self.means + (residual * values / total) @ right,
            basis=right.T,
            scale=self.sigma / np.sqrt(total),
        )

    @cached_property
    def exact_log_evidence(self) -> float:
        """The evidence, log p(y), in nats."""
        return float(log_sum_exp(self._log_component_evidence))

    @property
    def exact_mode_weights(self) -> np.ndarray:
        """The posterior probability of each component of the prior, shape (components,)."""
        return self.posterior.weights

    def exact_draws(self, seed: int, count: int) -> np.ndarray:
        """Independent draws of the posterior, float64, shape (count, d)."""
        return self.posterior.draws(seed, count)

    def assign(self, x: np.ndarray) -> np.ndarray:
        """The most probable component of each draw: the same given y as without it, since y depends on x alone."""
        x = np.asarray(x, np.float64)
        scores = x @ self.means.T - 0.5 * (self.means**2).sum(-1) + np.log(self.weights)
        return scores.argmax(-1)

    def mode_weights_distance(self, x: np.ndarray) -> float:
        """Total variation between the shares of the modes among draws and their exact posterior weights.

        A draw that is not finite is in no mode.
        """
        finite = np.isfinite(x).all(-1)
        shares = np.bincount(self.assign(x[finite]), minlength=len(self.weights)) / len(x)
        return 0.5 * float(np.abs(shares - self.exact_mode_weights).sum() + 1 - finite.mean())

    def model(self, prior: dist.Distribution) -> Callable[..., None]:
        """The plain NumPyro model of this problem under a diffusion prior; to be run on ``y``."""
        return linear_model(prior, self.matrix, self.sigma)

    @cached_property
    def _svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.linalg.svd(self.matrix, full_matrices=False)

    @cached_property
    def _log_component_evidence(self) -> np.ndarray:
        """The logarithm of w_k N(y; A mu_k, A A^T + sigma^2 I); the part of y outside A's range is noise alone."""
        left, values, _ = self._svd
        residual = self.y - self.means @ self.matrix.T
        inside = residual @ left
        total = values**2 + self.sigma**2
        squares = (inside**2 / total).sum(-1) + ((residual - inside @ left.T) ** 2).sum(-1) / self.sigma**2
        log_det = np.log(total).sum() + (len(self.y) - len(total)) * 2 * math.log(self.sigma)
        return np.log(self.weights) - 0.5 * (squares + log_det + len(self.y) * math.log(2 * math.pi))


def linear_model(prior: dist.Distribution, matrix: np.ndarray, sigma: float) -> Callable[..., None]:
    """The model x ~ prior, y ~ Normal(A x, sigma), to be run on ``y``."""
    matrix, sigma = jnp.asarray(matrix, float), jnp.asarray(sigma, float)

    def model(y: Any = None) -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x @ matrix.T, sigma).to_event(1), obs=y)

    return model


def problem(seed: int, dimension: int, observed: int) -> MixtureProblem:
    """The problem of a seed: the same numbers on every machine.

    Args:
        seed: any number >= 0.
        dimension: d, even.
        observed: size of y, at most d.
    """
    if dimension % 2 or not 1 <= observed <= dimension:
        raise ValueError(f"Expected an even dimension and 1 <= observed <= dimension; got {dimension}, {observed}.")
    rng = np.random.default_rng([seed, dimension, observed])
    levels = 8.0 * np.arange(-2, 3)
    pairs = np.stack(np.meshgrid(levels, levels, indexing="ij"), axis=-1).reshape(-1, 2)
    means = np.tile(pairs, (1, dimension // 2))
    weights = np.maximum(rng.chisquare(1, size=len(means)), SMALLEST_WEIGHT)
    weights = weights / weights.sum()
    left, _, right = np.linalg.svd(rng.standard_normal((observed, dimension)), full_matrices=False)
    values = np.sort(rng.uniform(size=observed))[::-1]
    matrix = (left * values) @ right
    sigma = float(rng.uniform() * values[0])
    truth = means[rng.choice(len(means), p=weights)] + rng.standard_normal(dimension)
    y = matrix @ truth + sigma * rng.standard_normal(observed)
    return MixtureProblem(seed, means, weights, matrix, sigma, truth, y)


def planar_problem(seed: int, observed: int, sigma: float) -> MixtureProblem:
    """A small problem in the plane: four unit modes of random places and weights, y = A x* + sigma eps, A normal.

    Args:
        seed: any number >= 0.
        observed: size of y; it may exceed 2.
        sigma: standard deviation of the observation.
    """
    rng = np.random.default_rng([seed, 2, observed, 4])
    means = 4.0 * rng.standard_normal((4, 2))
    weights = rng.dirichlet(np.full(4, 3.0))
    matrix = rng.standard_normal((observed, 2))
    truth = means[rng.choice(4, p=weights)] + rng.standard_normal(2)
    y = matrix @ truth + sigma * rng.standard_normal(observed)
    return MixtureProblem(seed, means, weights, matrix, sigma, truth, y)


def prior(
    of: MixtureProblem, num_steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX
) -> nd.Diffusion:
    """The problem's prior as a diffusion of ``num_steps`` steps with the exact denoiser in place of a network."""
    centred = of.means - of.weights @ of.means
    kernel = nd.GaussianKernel(
        nd.schedules.log_snr(num_steps, sigma_min, sigma_max),
        parameterization="x0",
        variance="denoiser",
        data_scale=math.sqrt(1 + (of.weights @ centred**2).mean()),
    )
    return nd.Diffusion(kernel, nd.analytic.gaussian_mixture(kernel, of.means, 1.0, of.weights))


def sliced_wasserstein(x: Any, y: Any, *, num_slices: int = 500, seed: int = 0) -> float:
    """The package's sliced distance with a seed; infinite for an engine whose draws are not finite.

    Args:
        x: draws, shape (count, d).
        y: as many draws, shape (count, d).
        num_slices: directions, uniform on the sphere.
        seed: of the directions.
    """
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.inf
    return nd.evaluation.sliced_wasserstein(jax.random.key(seed), x, y, num_slices=num_slices)


def distance_to_exact(exact: Callable[[int, int], np.ndarray], x: Any, *, repeats: int = 4, seed: int = 0) -> float:
    """The sliced distance of draws to as many exact ones, mean over a few sets of exact draws.

    Args:
        exact: exact draws from (seed, count).
        x: draws, shape (count, d).
        repeats: sets of exact draws.
        seed: sets are numbered from 1000 seed + 1.
    """
    sets = [exact(1000 * seed + index, len(x)) for index in range(1, repeats + 1)]
    return float(np.mean([sliced_wasserstein(x, draws, seed=index) for index, draws in enumerate(sets)]))


def floor(exact: Callable[[int, int], np.ndarray], count: int, *, repeats: int = 8, seed: int = 0) -> float:
    """The sliced distance of exact draws to exact draws of the same count, mean over independent pairs."""
    first = 1000 * seed + 500
    pairs = [(exact(first + 2 * index, count), exact(first + 2 * index + 1, count)) for index in range(repeats)]
    return float(np.mean([sliced_wasserstein(x, y, seed=index) for index, (x, y) in enumerate(pairs)]))


def log_sum_exp(values: np.ndarray) -> np.ndarray:
    """The logarithm of the sum of exponentials over the last axis."""
    largest = values.max(-1, keepdims=True)
    return (largest + np.log(np.exp(values - largest).sum(-1, keepdims=True)))[..., 0]


def draw(prior: dist.Distribution, seed: int, count: int) -> np.ndarray:
    """Draws of a distribution as a float64 array, compiled."""
    sample = jax.jit(lambda prior, key: prior.sample(key, (count,)))
    return np.asarray(sample(prior, jax.random.key(seed)), np.float64)
