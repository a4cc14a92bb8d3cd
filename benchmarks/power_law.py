r"""A stationary Gaussian picture with a power law for spectrum, behind a denoiser like a learned one; its posterior.

In the orthonormal cosine basis x^0 has independent coordinates of variance l_k ~ (1 + i^2 + j^2)^{-1.2}, scaled to a
mean of 1, i and j the frequencies. The denoiser is that of the picture, exact, and tells one variance for all pixels,
as a network does: the correlations of x^0 given x^t are not in it. The reverse chain of T steps is linear and Gaussian,
with the same basis. So the variance v_k of each coordinate of its x^0 is known, and the posterior given pixels with
noise s:

    E[x_k | y] = v_k / (v_k + s^2) y_k,        Var = v_k s^2 / (v_k + s^2).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.fft import dct

import numpyro_diffusion as nd

__all__ = ["PowerLaw", "power_law"]

NUM_STEPS, SIGMA_MIN, SIGMA_MAX = 30, 0.1, 300.0


class PowerLaw(NamedTuple):
    """The prior, the cosine basis of one side, and the variances of x^0's coordinates under the T-step chain."""

    prior: nd.Diffusion
    basis: np.ndarray
    variances: np.ndarray

    def posterior(self, y: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the coordinates given pixels y, all of shape (side, side)."""
        coordinates = _to_basis(np.asarray(y, np.float64), self.basis)
        gain = self.variances / (self.variances + noise**2)
        return gain * coordinates, np.sqrt(gain) * noise

    def coordinates(self, x: np.ndarray) -> np.ndarray:
        return _to_basis(x, self.basis)


def _to_basis(x: Any, basis: Any) -> Any:
    return basis @ x @ basis.T


def denoiser(params: Any, x_t: Any, t: Any, context: Any) -> tuple[jax.Array, jax.Array]:
    """E[x^0 | x^t], and the mean over pixels of its variance."""
    power, noise = (params[name][t][..., None, None] for name in ("alpha_bar", "noise_variance"))
    total = power * params["variances"] + noise
    moved = jnp.sqrt(power) * params["variances"] / total * _to_basis(x_t, params["basis"])
    variance = (params["variances"] * noise / total).mean((-1, -2), keepdims=True)
    return _to_basis(moved, params["basis"].T), jnp.broadcast_to(variance, x_t.shape)


def power_law(side: int) -> PowerLaw:
    """Pictures of ``side`` by ``side`` pixels."""
    basis = dct(np.eye(side), axis=0, norm="ortho")
    squares = np.arange(side) ** 2
    variances = (1.0 + squares[:, None] + squares) ** -1.2
    variances /= variances.mean()
    schedule = nd.schedules.log_snr(NUM_STEPS, SIGMA_MIN, SIGMA_MAX)
    kernel = nd.GaussianKernel(schedule, parameterization="x0", variance="denoiser")
    params = {name: jnp.asarray(getattr(schedule, name), float) for name in ("alpha_bar", "noise_variance")}
    params |= {"variances": jnp.asarray(variances, float), "basis": jnp.asarray(basis, float)}
    prior = nd.Diffusion(kernel, nd.Transition(denoiser, params, (side, side)))
    return PowerLaw(prior, basis, _variances_of_chain(schedule, variances))


def _variances_of_chain(schedule: nd.Schedule, variances: np.ndarray) -> np.ndarray:
    """Of x^0's coordinates under the reverse chain of T steps, step by step."""
    beta, alpha_bar, noise = (
        np.asarray(part, np.float64) for part in (schedule.beta, schedule.alpha_bar, schedule.noise_variance)
    )
    found = np.ones_like(variances)
    for t in range(schedule.num_steps, 0, -1):
        total = alpha_bar[t] * variances + noise[t]
        to_data = math.sqrt(alpha_bar[t - 1]) * beta[t] / noise[t]
        to_state = math.sqrt(1 - beta[t]) * noise[t - 1] / noise[t]
        slope = to_data * math.sqrt(alpha_bar[t]) * variances / total + to_state
        step = beta[t] * noise[t - 1] / noise[t] + to_data**2 * (variances * noise[t] / total).mean()
        found = slope**2 * found + step
    return found
