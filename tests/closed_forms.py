"""Chains whose distribution of x^0 is known, in float64 and without any engine: what posteriors are compared with.

All are distributions of the T-step model itself: the networks are wrong on purpose, so that an engine that
finds the data distribution instead is found out.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd


def affine_denoiser(params: Any, x_t: Any, t: Any, context: Any) -> Any:
    """The exact denoiser of N(mean, 1) with its gain off by 0.8: x^0 is Gaussian, of other moments."""
    mean = params["mean"] + (0 if context is None else context)
    signal = params["signal"][t][..., None]
    return mean + 0.8 * signal * (x_t - signal * mean)


def affine_prior(schedule: nd.Schedule, mean: Any, context: Any = None, **kernel_options: Any) -> nd.Diffusion:
    """A diffusion with independent Gaussian coordinates, one for each entry of ``mean``; a context is added to it."""
    options = {"parameterization": "x0", "variance": "upper", "data_scale": 1.2, **kernel_options}
    kernel = nd.GaussianKernel(schedule, **options)
    mean = jnp.asarray(mean, float)
    params = {"signal": jnp.sqrt(jnp.asarray(schedule.alpha_bar, float)), "mean": mean}
    context_shape = None if context is None else mean.shape
    transition = nd.Transition(affine_denoiser, params, mean.shape, context_shape)
    return nd.Diffusion(kernel, transition, context=context, rng_key=jax.random.key(7))


def gaussian_moments(prior: nd.Diffusion) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of x^t for t = 0..T, each (T + 1, d), of a chain with affine steps."""
    chain, size = prior.chain, prior.event_shape[0]
    mean, variance = np.zeros(size), np.ones(size)
    means, variances = [mean], [variance]
    for t in range(chain.kernel.num_steps, 0, -1):
        at_zero, at_one = (chain.conditional(jnp.full(size, value), t) for value in (0.0, 1.0))
        start = np.asarray(at_zero.mean, float)
        slope = np.asarray(at_one.mean, float) - start
        mean = slope * mean + start
        variance = slope**2 * variance + np.asarray(at_zero.variance, float)
        means.append(mean)
        variances.append(variance)
    return np.stack(means[::-1]), np.stack(variances[::-1])


def normal_log_density(residual: np.ndarray, covariance: np.ndarray) -> float:
    """Log N(residual; 0, covariance)."""
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return float(-0.5 * (residual @ np.linalg.solve(covariance, residual) + log_det))


def linear_posterior(
    mean: np.ndarray, covariance: np.ndarray, matrix: np.ndarray, noise: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Log evidence, mean and covariance of x ~ N(mean, covariance) given y = matrix x + N(0, noise)."""
    total = matrix @ covariance @ matrix.T + noise
    gain = np.linalg.solve(total, matrix @ covariance).T
    residual = y - matrix @ mean
    return normal_log_density(residual, total), mean + gain @ residual, covariance - gain @ matrix @ covariance


def density_on_grid(prior: nd.Diffusion, grid: np.ndarray) -> np.ndarray:
    """Density of x^0 on an even grid that covers every x^t, for a diffusion of one number (event shape (1,))."""
    width = grid[1] - grid[0]
    points = jnp.asarray(grid[:, None], float)
    density = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    for t in range(prior.kernel.num_steps, 0, -1):
        distribution = prior.chain.conditional(points, t)
        mean, scale = np.asarray(distribution.mean, float), np.sqrt(np.asarray(distribution.variance, float))
        step = np.exp(-0.5 * ((grid - mean) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))
        density = width * density @ step
    return density


def all_bits(size: int) -> np.ndarray:
    """Every vector of bits, (2^size, size)."""
    return np.array(list(itertools.product((0, 1), repeat=size)))


def bit_probabilities(prior: nd.Diffusion) -> np.ndarray:
    """P(x^0) of every vector of bits, in the order of :func:`all_bits`, by enumeration of every path."""
    states = jnp.asarray(all_bits(prior.event_shape[0]), int)
    start: Any = prior.kernel.stationary(states.shape).log_prob(states)
    probability = np.exp(np.asarray(start.sum(-1), float))
    for t in range(prior.kernel.num_steps, 0, -1):
        step = jax.vmap(lambda x_t, t=t: prior.chain.conditional(x_t, t).log_prob(states))(states)
        probability = probability @ np.exp(np.asarray(step, float))
    return probability / probability.sum()
