r"""Particles in order: neighbours in the array are neighbours in space.

Systematic resampling gives any block of neighbouring particles its expected number of offspring to within one. If
neighbours are alike, then each region of space, and so each mode, keeps its weight through a resampling, and nearly no
noise is added. The order is that of a Hilbert curve through the plane of the two directions in which the prior varies
most; any order is unbiased, so nothing depends on these directions but the noise.

References: Gerber, Chopin and Whiteley 2019 (Hilbert-ordered systematic resampling).
"""

import jax
import jax.numpy as jnp

from .._typing import Array
from .target import States, Target

__all__ = ["hilbert_order", "principal_directions"]

_BITS = 10  # a grid of 1024 x 1024 cells
_NUM_ITERATIONS = 10  # of the subspace iteration; the directions need not be exact


def principal_directions(target: Target, prior_draws: States) -> Array:
    """The two directions of largest variance of one element over prior draws, shape (D, 2)."""
    draws = _flat(target, prior_draws)
    draws = draws.reshape(-1, draws.shape[-1])
    draws = draws - draws.mean(0)
    start = jax.random.normal(jax.random.key(0), (draws.shape[-1], min(2, draws.shape[-1])), draws.dtype)

    def iterate(directions: Array, _: None) -> tuple[Array, None]:
        return _orthonormal(draws.T @ (draws @ directions)), None

    directions, _ = jax.lax.scan(iterate, start, None, length=_NUM_ITERATIONS)
    return directions


def hilbert_order(target: Target, directions: Array, x: States) -> Array:
    """Indices that put particles in the curve's order, shape (N, E...)."""
    plane = _flat(target, x) @ directions
    low, high = plane.min(0), plane.max(0)
    cells = ((plane - low) / jnp.maximum(high - low, 1e-30) * (2**_BITS - 1)).astype(jnp.int32)
    cells = jnp.clip(cells, 0, 2**_BITS - 1)  # a NaN has become some integer
    return jnp.argsort(_distance(cells[..., 0], cells[..., -1]), axis=0)


def _orthonormal(columns: Array) -> Array:
    """Gram-Schmidt for one or two columns."""
    tiny = jnp.finfo(columns.dtype).tiny
    first = columns[:, :1] / jnp.maximum(jnp.linalg.norm(columns[:, 0]), tiny)
    second = columns[:, 1:] - first * (first * columns[:, 1:]).sum(0)
    return jnp.concatenate([first, second / jnp.maximum(jnp.linalg.norm(second), tiny)], axis=1)


def _distance(column: Array, row: Array) -> Array:
    """How far along the Hilbert curve each cell of the grid lies."""
    distance = jnp.zeros_like(column)
    for bit in reversed(range(_BITS)):
        side = 1 << bit
        right, upper = (column & side) > 0, (row & side) > 0
        quadrant = jnp.where(right, jnp.where(upper, 2, 3), jnp.where(upper, 1, 0))
        distance = distance + side * side * quadrant
        # In the lower quadrants the curve is transposed, in the lower right one mirrored as well.
        mirrored_column = jnp.where(right & ~upper, side - 1 - column, column)
        mirrored_row = jnp.where(right & ~upper, side - 1 - row, row)
        column = jnp.where(upper, column, mirrored_row)
        row = jnp.where(upper, row, mirrored_column)
    return distance


def _flat(target: Target, x: States) -> Array:
    """All sites' coordinates of each element, (N, E..., D)."""
    leading = 1 + len(target.element_shape)
    parts = [jnp.asarray(x[name], float).reshape(x[name].shape[:leading] + (-1,)) for name in sorted(x)]
    return jnp.concatenate(parts, axis=-1)
