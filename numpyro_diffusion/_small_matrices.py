r"""Cholesky factors of many small matrices, in plain array operations.

The matrices are m x m with m the numbers observed of one element, and there is one for each particle. LAPACK's batched
routines are no good for that inside a compiled loop: on the CPU, XLA runs several of them at once on its own threads,
each waiting for more threads, and on two cores a run can wait for ever.

A pivot smaller than the least that it can be is raised to it: the factor is that of a near positive definite matrix.
"""

import jax
import jax.numpy as jnp

from ._typing import Array

__all__ = ["cholesky", "is_covariance", "normal_log_density", "solve", "solve_lower", "symmetric"]


def cholesky(matrix: Array, least: Array | None = None) -> Array:
    """The lower factor L of L L^T, over trailing axes (m, m).

    ``least``, shape (m,), bounds the pivots from below. Adding a positive semidefinite matrix to a diagonal one leaves
    no pivot below the diagonal's entry, so for a sum that should be one, the diagonal is the bound. Default: rounding.
    """
    size = matrix.shape[-1]
    if least is None:
        limits = jnp.finfo(matrix.dtype)
        largest = jnp.max(jnp.abs(jnp.diagonal(matrix, axis1=-2, axis2=-1)), axis=-1, keepdims=True)
        least = jnp.maximum(limits.eps * largest, limits.tiny)
    least = jnp.broadcast_to(least, matrix.shape[:-1])
    rows = jnp.arange(size)

    def column(j: Array, factor: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(factor, j, axis=-2, keepdims=False)
        rest = jax.lax.dynamic_index_in_dim(matrix, j, axis=-1, keepdims=False) - (factor * row[..., None, :]).sum(-1)
        pivot, bound = (jax.lax.dynamic_index_in_dim(part, j, axis=-1) for part in (rest, least))
        root = jnp.sqrt(jnp.maximum(pivot, bound))
        entries = jnp.where(rows > j, rest / root, jnp.where(rows == j, root, 0.0))
        return jnp.where(rows == j, entries[..., None], factor)

    return jax.lax.fori_loop(0, size, column, jnp.zeros_like(matrix))


def solve_lower(factor: Array, right: Array) -> Array:
    """L^-1 right, over trailing axes (m, m) and (m,)."""
    return _substitute(factor, right, jnp.arange(factor.shape[-1]))


def solve(matrix: Array, right: Array, least: Array | None = None) -> Array:
    """The solution x of matrix x = right, for a positive definite matrix, over trailing axes (m, m) and (m,)."""
    factor = cholesky(matrix, least)
    steps = jnp.arange(factor.shape[-1])
    return _substitute(jnp.swapaxes(factor, -1, -2), solve_lower(factor, right), steps[::-1])


def _substitute(factor: Array, right: Array, order: Array) -> Array:
    """Solve a triangular system row by row; entries not yet found are zero and add nothing."""
    rows = jnp.arange(factor.shape[-1])

    def step(found: Array, j: Array) -> tuple[Array, None]:
        row = jax.lax.dynamic_index_in_dim(factor, j, axis=-2, keepdims=False)
        wanted = jax.lax.dynamic_index_in_dim(right, j, axis=-1, keepdims=False) - (row * found).sum(-1)
        entry = wanted / jax.lax.dynamic_index_in_dim(row, j, axis=-1, keepdims=False)
        return jnp.where(rows == j, entry[..., None], found), None

    return jax.lax.scan(step, jnp.zeros_like(right), order)[0]


def symmetric(matrix: Array) -> Array:
    """The symmetric part, over trailing axes (m, m)."""
    return 0.5 * (matrix + jnp.swapaxes(matrix, -1, -2))


def is_covariance(found: Array, noise: Array) -> Array:
    """Whether a symmetric matrix is nearly a covariance beside that of the noise which it is added to.

    Adding a covariance to ``noise`` leaves no pivot below the noise's own. So the factor of the sum, with pivots raised
    to these, gives the sum back up to a hundredth of its largest variance. A network's Jacobian often fails this at the
    noisiest levels, where it was trained least.

    Args:
        found: shape (..., m, m), symmetric.
        noise: positive definite, shape (m, m) or (..., m, m).

    Returns:
        Booleans of shape (...), without a gradient.
    """
    found, noise = jax.lax.stop_gradient((found, noise))
    total = found + noise
    least = jnp.diagonal(cholesky(noise), axis1=-2, axis2=-1) ** 2
    factor = cholesky(total, least)
    error = jnp.abs(factor @ jnp.swapaxes(factor, -1, -2) - total).max((-2, -1))
    return error <= 0.01 * jnp.diagonal(total, axis1=-2, axis2=-1).max(-1)


def normal_log_density(residual: Array, covariance: Array) -> Array:
    """Log N(residual; 0, covariance) over trailing axes (m,) and (m, m)."""
    if residual.shape[-1] == 1:
        variance = covariance[..., 0, 0]
        return -0.5 * (residual[..., 0] ** 2 / variance + jnp.log(2 * jnp.pi * variance))
    factor = cholesky(covariance)
    white = solve_lower(factor, residual)
    log_scale = jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
    return -0.5 * ((white**2).sum(-1) + residual.shape[-1] * jnp.log(2 * jnp.pi)) - log_scale
