"""A chain with the exact denoiser of a correlated Gaussian, for guidance by covariances.

A reverse step has no covariances, so that 30 of them come close to N(0, SPREAD) and do not meet it.
"""

import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd

ROTATION = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
SPREAD = ROTATION @ np.diag([2.0, 0.5, 0.1]) @ ROTATION.T
KERNEL = nd.GaussianKernel(nd.schedules.log_snr(30, 0.05, 50.0), parameterization="x0", variance="denoiser")


def correlated_chain(
    spread: np.ndarray = SPREAD, kernel: nd.GaussianKernel = KERNEL, shape: tuple[int, ...] | None = None
) -> tuple[nd.ReverseChain, np.ndarray]:
    """The chain of N(0, S) with its exact denoiser S a (a^2 S + v)^{-1} x_t; Cov[x^0 | x^t] for t = 0..T."""
    size = len(spread)
    signal, noise = (
        np.asarray(values, float) for values in (kernel.schedule.alpha_bar**0.5, kernel.schedule.noise_variance)
    )
    gains = np.stack(
        [spread * a @ np.linalg.inv(a**2 * spread + v * np.eye(size)) for a, v in zip(signal, noise, strict=True)]
    )
    covariances = spread - signal[:, None, None] * gains @ spread
    variances = np.diagonal(covariances, axis1=1, axis2=2)

    def function(params, x_t, t, context):
        gain, variance = params
        flat = x_t.reshape((*x_t.shape[: x_t.ndim - len(shape or (size,))], size))
        mean = jnp.einsum("...ij,...j->...i", gain[t], flat)
        return mean.reshape(x_t.shape), jnp.broadcast_to(variance[t], flat.shape).reshape(x_t.shape)

    params = jnp.asarray(gains, jnp.float32), jnp.asarray(variances, jnp.float32)
    return nd.ReverseChain(kernel, nd.Transition(function, params, shape or (size,))), covariances


def exact_errors(covariances: np.ndarray) -> nd.guidance.ErrorCovariance:
    """Their whole covariances, of t = 1..T."""
    values, directions = np.linalg.eigh(covariances[1:])
    factor = jnp.asarray(directions * np.sqrt(np.maximum(values, 0))[:, None, :], jnp.float32)
    return nd.guidance.ErrorCovariance(factor, jnp.full(factor.shape[:2], 1e-6, jnp.float32))
