r"""The paper's toy data, generated from a key, with their true entropies.

Swiss roll: u ~ U(0, 1), theta = 3 pi / 2 (1 + 2 u), point theta (cos theta, sin theta) plus N(0, noise^2) on
each coordinate, then shifted and divided by one number so that the mean is 0 and the average variance of the
two coordinates is 1 (one number, not two: the roll keeps its shape and the added noise stays isotropic). Mean
and scale are those of the distribution, not of the sample, so the density is known and its entropy is an integral.

Heartbeat: 20 bits with a pulse in every fifth, at a phase drawn evenly from 0..4: log p = -log 5 for each of
five sequences.

References: Sohl-Dickstein et al. 2015, Section 3.1.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_integer_at_least, expected
from .._typing import Array

__all__ = ["heartbeat", "heartbeat_entropy", "swiss_roll", "swiss_roll_entropy", "swiss_roll_log_prob"]

_HEARTBEAT_BITS, _HEARTBEAT_PERIOD = 20, 5


def swiss_roll(rng_key: jax.Array, num_points: int, *, noise: float = 0.5) -> Array:
    """Points of the two-dimensional swiss roll, mean 0 and variance 1.

    Args:
        rng_key: JAX random key.
        num_points: how many.
        noise: standard deviation of the added noise before scaling, >= 0; the roll's radius goes from 4.7 to 14.1.

    Returns:
        Shape (num_points, 2).

    >>> swiss_roll(jax.random.key(0), 3).shape
    (3, 2)
    """
    check_integer_at_least("num_points", num_points, 1, "Pass the number of points.")
    key_angle, key_noise = jax.random.split(rng_key)
    curve = _curve(jax.random.uniform(key_angle, (num_points,)), jnp)
    mean, scale = _roll_moments(noise)
    points = curve + noise * jax.random.normal(key_noise, (num_points, 2))
    return (points - jnp.asarray(mean, points.dtype)) / jnp.asarray(scale, points.dtype)


def swiss_roll_log_prob(x: np.ndarray, *, noise: float = 0.5, extra_noise: float = 0.0) -> np.ndarray:
    """The roll's exact log density by quadrature along the curve, in float64 on the host.

    Args:
        x: points in scaled units, shape (n, 2).
        noise: as in :func:`swiss_roll`.
        extra_noise: standard deviation, in scaled units, of more noise added after scaling.

    Returns:
        Shape (n,), nats.

    Raises:
        ValueError: if there is no noise at all: a curve has no density.
    """
    mean, scale = _roll_moments(noise)
    width = math.hypot(noise / scale, extra_noise)
    if not width > 0:
        raise ValueError(expected("noise > 0 or extra_noise > 0", (noise, extra_noise), "A curve has no density."))
    # The midpoint rule on a smooth integrand: nodes a third of the width apart along the longest stretch of the curve.
    nodes = int(np.clip(3 * np.ceil(3 * np.pi * 14.5 / scale / width), 2000, 60000))
    curve = (_curve((np.arange(nodes) + 0.5) / nodes, np) - mean) / scale
    x = np.asarray(x, np.float64)
    log_density = np.empty(len(x))
    chunk = max(1, 2**23 // nodes)
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        exponent = (part @ curve.T - 0.5 * (part**2).sum(1)[:, None] - 0.5 * (curve**2).sum(1)) / width**2
        largest = exponent.max(1)
        log_density[start : start + chunk] = largest + np.log(np.exp(exponent - largest[:, None]).mean(1))
    return log_density - math.log(2 * math.pi * width**2)


def swiss_roll_entropy(
    *, noise: float = 0.5, extra_noise: float = 0.0, order: int = 12, num_angles: int = 200
) -> float:
    """The roll's differential entropy, in nats, by quadrature over the curve and over the noise.

    Args:
        noise: as in :func:`swiss_roll`.
        extra_noise: as in :func:`swiss_roll_log_prob`.
        order: Gauss-Hermite nodes for each coordinate of the noise.
        num_angles: Gauss-Legendre nodes along the curve.

    >>> round(swiss_roll_entropy() / math.log(2), 2)  # bits
    1.95
    """
    mean, scale = _roll_moments(noise)
    width = math.hypot(noise / scale, extra_noise)
    u, u_weights = np.polynomial.legendre.leggauss(num_angles)
    z, z_weights = np.polynomial.hermite_e.hermegauss(order)
    curve = (_curve((u + 1) / 2, np) - mean) / scale
    shifts = width * np.stack(np.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 2)
    weights = (u_weights / 2)[:, None] * (np.outer(z_weights, z_weights).ravel() / (2 * np.pi))
    points = (curve[:, None] + shifts).reshape(-1, 2)
    return float(-(weights.ravel() * swiss_roll_log_prob(points, noise=noise, extra_noise=extra_noise)).sum())


def heartbeat(rng_key: jax.Array, num_sequences: int) -> Array:
    """Binary heartbeats: 20 bits, one pulse every fifth.

    Args:
        rng_key: JAX random key.
        num_sequences: how many.

    Returns:
        Shape (num_sequences, 20), integers 0 and 1.

    >>> int(heartbeat(jax.random.key(0), 1).sum())
    4
    """
    check_integer_at_least("num_sequences", num_sequences, 1, "Pass the number of sequences.")
    phase = jax.random.randint(rng_key, (num_sequences, 1), 0, _HEARTBEAT_PERIOD)
    return (jnp.arange(_HEARTBEAT_BITS) % _HEARTBEAT_PERIOD == phase).astype(int)


def heartbeat_entropy() -> float:
    """The entropy log 5, in nats."""
    return math.log(_HEARTBEAT_PERIOD)


def _curve(u, numpy):  # type: ignore[no-untyped-def]  # the same formula for NumPy and for JAX
    """The noiseless roll at u in (0, 1), shape (n, 2)."""
    theta = 1.5 * np.pi * (1 + 2 * u)
    return numpy.stack([theta * numpy.cos(theta), theta * numpy.sin(theta)], -1)


def _roll_moments(noise: float) -> tuple[np.ndarray, float]:
    """Mean of the roll's distribution, and the root of its average variance, by Gauss-Legendre quadrature."""
    if not 0 <= noise < math.inf:
        raise ValueError(expected("noise >= 0", noise, "It is a standard deviation; the roll's radius is about 10."))
    u, weights = np.polynomial.legendre.leggauss(64)
    curve = _curve((u + 1) / 2, np)
    mean = (weights / 2) @ curve
    variance = (weights / 2) @ (curve - mean) ** 2
    return mean, math.sqrt(variance.mean() + noise**2)
