r"""Weighted particles: log weights of shape (N, E...), one weight for each particle and each element.

Weights are kept as logarithms with the largest subtracted before anything is exponentiated. N particles whose
weights are all zero have no law; they are reported, and treated as equal so that no NaN spreads.

References: Kitagawa 1996 (systematic resampling); Andrieu, Doucet, Holenstein 2010 (a retained particle).
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, PyTree, Shape

__all__ = ["effective_size", "gather", "log_mean_exp", "multinomial", "normalised", "systematic"]


def log_mean_exp(log_weights: Array) -> Array:
    """The log of the average weight, shape E; -inf where all are zero."""
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(log_weights.shape[0])


def normalised(log_weights: Array) -> Array:
    """Weights that sum to one over particles; equal ones where all are zero."""
    dead = jnp.all(log_weights == -jnp.inf, axis=0)
    return jax.nn.softmax(jnp.where(dead, 0.0, log_weights), axis=0)


def effective_size(log_weights: Array) -> Array:
    """(sum w)^2 / sum w^2, between 1 and N, shape E."""
    return 1 / jnp.sum(normalised(log_weights) ** 2, axis=0)


def systematic(
    key: jax.Array, log_weights: Array, num_draws: int | None = None, *, order: Array | None = None
) -> Array:
    """Ancestors by systematic resampling: one uniform offset, evenly spaced points on the cumulative weights.

    Args:
        key: randomness.
        log_weights: (N, E...).
        num_draws: how many, by default N.
        order: the order in which weights are cumulated, a permutation of particles, (N, E...); None for the array's.

    Returns:
        Integers of shape (num_draws, E...), in that order.
    """
    if order is not None:
        return gather(order, systematic(key, gather(log_weights, order), num_draws))
    count = num_draws or log_weights.shape[0]
    offset = jax.random.uniform(key, (1, *log_weights.shape[1:]), log_weights.dtype)
    points = (jnp.arange(count, dtype=log_weights.dtype).reshape(_column(count, log_weights)) + offset) / count
    return _invert(jnp.broadcast_to(points, (count, *log_weights.shape[1:])), log_weights)


def multinomial(key: jax.Array, log_weights: Array) -> Array:
    """Ancestors drawn independently of each other, shape (N, E...)."""
    return _invert(jax.random.uniform(key, log_weights.shape, log_weights.dtype), log_weights)


def gather(tree: PyTree, ancestors: Array) -> PyTree:
    """The ancestors' values: every leaf has leading axes (N, E...); ancestors (M, E...)."""

    def take(leaf: Array) -> Array:
        if ancestors.ndim == 1:
            return leaf[ancestors]
        return jnp.take_along_axis(leaf, ancestors.reshape(ancestors.shape + (1,) * (leaf.ndim - ancestors.ndim)), 0)

    return jax.tree.map(take, tree)


def _column(count: int, log_weights: Array) -> Shape:
    return (count,) + (1,) * (log_weights.ndim - 1)


def _invert(points: Array, log_weights: Array) -> Array:
    """The first particle whose cumulative weight exceeds each point; particles of weight zero are never taken."""
    cumulative: Any = jnp.cumsum(normalised(log_weights), axis=0)
    # The last sum is 1 only to rounding, and a point may be rounded to 1: so put, each lies below the last sum, which
    # the last particle with a weight reaches.
    points = jnp.minimum(points, 1 - jnp.finfo(points.dtype).epsneg) * cumulative[-1]
    search = lambda total, at: jnp.searchsorted(total, at, side="right")  # noqa: E731
    for _ in range(log_weights.ndim - 1):
        search = jax.vmap(search, in_axes=-1, out_axes=-1)
    return jnp.minimum(search(cumulative, points), log_weights.shape[0] - 1)
