r"""Weights of particles, islands and draws: log weights of shape (N, E...), one for each particle and each element.

    log mean  log (1/N) sum_n w_n        normalised  w_n / sum w        effective size  (sum w)^2 / sum w^2

Weights are kept as logarithms, and the largest is subtracted before anything is exponentiated. N weights that are all
zero have no distribution: they are treated as equal, so that no NaN spreads, and their log mean, -inf, tells of them.
Every function takes JAX arrays and NumPy arrays, and computes in the array's own library and dtype: the host pools
islands in float64 whatever JAX's precision, and compiles nothing for each number of draws. ``rng`` is a JAX key or a
``numpy.random.Generator``.

References: Kitagawa 1996 (systematic resampling).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._typing import Array, PyTree, Shape

__all__ = [
    "effective_size",
    "gather",
    "host_generator",
    "log_mean_and_error",
    "log_mean_exp",
    "log_normalised",
    "log_sum_exp",
    "multinomial",
    "normalised",
    "systematic",
]


def log_sum_exp(log_weights: Any, axis: int = 0) -> Any:
    """The log of the sum of weights over ``axis``; -inf where all are zero."""
    xp = log_weights.__array_namespace__()
    top = log_weights.max(axis=axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):  # the log of zero is wanted
        return xp.log(xp.exp(log_weights - top).sum(axis=axis)) + top.squeeze(axis)


def log_mean_exp(log_weights: Any, axis: int = 0) -> Any:
    """The log of the mean weight over ``axis``; -inf where all are zero."""
    return log_sum_exp(log_weights, axis) - math.log(log_weights.shape[axis])


def log_normalised(log_weights: Any, axis: int = 0) -> Any:
    """The logs of weights that sum to one over ``axis``; -inf where all are zero."""
    xp = log_weights.__array_namespace__()
    total = xp.expand_dims(log_sum_exp(log_weights, axis), axis)
    return log_weights - xp.where(total == -xp.inf, 0, total)


def normalised(log_weights: Any, axis: int = 0) -> Any:
    """Weights that sum to one over ``axis``; equal ones where all are zero."""
    xp = log_weights.__array_namespace__()
    dead = (log_weights == -xp.inf).all(axis=axis, keepdims=True)
    return xp.exp(log_normalised(xp.where(dead, 0, log_weights), axis))


def effective_size(log_weights: Any, axis: int = 0) -> Any:
    """(sum w)^2 / sum w^2 over ``axis``, between 1 and N."""
    return 1 / (normalised(log_weights, axis) ** 2).sum(axis=axis)


def log_mean_and_error(log_weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """The log of the mean weight over axis 0, and its standard error by the delta method: NaN for one weight."""
    log_weights = np.asarray(log_weights, np.float64)
    log_mean, count = np.asarray(log_mean_exp(log_weights)), len(log_weights)
    if count == 1:
        return log_mean, np.full_like(log_mean, np.nan)
    with np.errstate(invalid="ignore"):  # the ratio of zeros is NaN
        relative = np.exp(log_weights - log_mean)
        return log_mean, np.asarray(relative.std(axis=0, ddof=1) / math.sqrt(count))


def systematic(rng: Any, log_weights: Any, num_draws: int | None = None) -> Any:
    """Ancestors by systematic resampling: one uniform offset, evenly spaced points on the cumulative weights.

    Args:
        rng: randomness.
        log_weights: (N, E...); a NumPy array has no E.
        num_draws: how many, by default N.

    Returns:
        Integers of shape (num_draws, E...), in rising order.
    """
    count = num_draws or log_weights.shape[0]
    steps = np.arange(count, dtype=log_weights.dtype).reshape((count,) + (1,) * (log_weights.ndim - 1))
    return _invert((steps + _uniform(rng, (1, *log_weights.shape[1:]), log_weights.dtype)) / count, log_weights)


def multinomial(rng: Any, log_weights: Any) -> Any:
    """Ancestors drawn independently of each other, shape (N, E...)."""
    return _invert(_uniform(rng, log_weights.shape, log_weights.dtype), log_weights)


def gather(tree: PyTree, ancestors: Array) -> PyTree:
    """The ancestors' values: every leaf has leading axes (N, E...); ancestors (M, E...)."""

    def take(leaf: Array) -> Array:
        if ancestors.ndim == 1:
            return leaf[ancestors]
        return jnp.take_along_axis(leaf, ancestors.reshape(ancestors.shape + (1,) * (leaf.ndim - ancestors.ndim)), 0)

    return jax.tree.map(take, tree)


def host_generator(key: jax.Array) -> np.random.Generator:
    """NumPy's randomness from a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


def _uniform(rng: Any, shape: Shape, dtype: Any) -> Any:
    if isinstance(rng, np.random.Generator):
        return rng.uniform(size=shape).astype(dtype)
    return jax.random.uniform(rng, shape, dtype)


def _invert(points: Any, log_weights: Any) -> Any:
    """The first particle whose cumulative weight exceeds each point; particles of weight zero are never taken."""
    xp = log_weights.__array_namespace__()
    cumulative = xp.cumsum(normalised(log_weights), axis=0)
    # The last sum is 1 only to rounding, and a point may be rounded to 1: so put, each lies below the last sum, which
    # the last particle with a weight reaches.
    points = xp.minimum(points, 1 - jnp.finfo(points.dtype).epsneg) * cumulative[-1]
    search: Any = lambda total, at: xp.searchsorted(total, at, side="right")  # noqa: E731
    for _ in range(log_weights.ndim - 1):
        search = jax.vmap(search, in_axes=-1, out_axes=-1)
    return xp.minimum(search(cumulative, points), log_weights.shape[0] - 1)
