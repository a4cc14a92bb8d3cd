r"""The T-step model of a single Gaussian in closed form: what a chain of any length should give, not only a long one.

For data N(mu, s^2 I) the exact denoiser is affine, so with the c_t and d_t of the Gaussian kernel's bridge

    x^{t-1} = c_t E[x^0 | x^t] + d_t x^t + noise of variance b_t v_{t-1} / v_t + c_t^2 Var[x^0 | x^t]

is a linear recursion from x^T ~ N(0, 1): mean and variance of x^0 follow step by step, in float64.
"""

import math
from typing import Any

import numpy as np

from numpyro_diffusion import Schedule


def chain_moments(schedule: Schedule, loc: np.ndarray, scale: Any) -> tuple[np.ndarray, Any]:
    """Mean, shape (d,), and variance of the coordinates of x^0 under the reverse chain.

    Args:
        schedule: concrete.
        loc: mu, shape (d,).
        scale: s, one number, or one for each coordinate; the variance has its shape.
    """
    beta, alpha_bar, noise = (
        np.asarray(x, np.float64) for x in (schedule.beta, schedule.alpha_bar, schedule.noise_variance)
    )
    mean, variance = np.zeros_like(loc), np.ones_like(scale, np.float64)
    for t in range(schedule.num_steps, 0, -1):
        total = alpha_bar[t] * scale**2 + noise[t]
        gain = math.sqrt(alpha_bar[t]) * scale**2 / total
        to_data = math.sqrt(alpha_bar[t - 1]) * beta[t] / noise[t]
        to_state = math.sqrt(1 - beta[t]) * noise[t - 1] / noise[t]
        slope = to_data * gain + to_state
        mean = slope * mean + to_data * (noise[t] / total) * loc
        step = beta[t] * noise[t - 1] / noise[t] + to_data**2 * scale**2 * noise[t] / total
        variance = slope**2 * variance + step
    return mean, variance


def log_evidence(mean: np.ndarray, variance: float, matrix: np.ndarray, sigma: float, y: np.ndarray) -> float:
    """The logarithm of N(y; A mean, variance A A^T + sigma^2 I), in nats."""
    covariance = variance * matrix @ matrix.T + sigma**2 * np.eye(len(y))
    residual = y - matrix @ mean
    _, log_det = np.linalg.slogdet(covariance)
    return -0.5 * float(residual @ np.linalg.solve(covariance, residual) + log_det + len(y) * math.log(2 * math.pi))
