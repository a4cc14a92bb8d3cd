"""Elementary functions whose value and gradient stay finite at the edge of their domain.

The usual ``jnp.where(x > 0, jnp.sqrt(x), 0)`` has a NaN gradient at 0 (0 times infinity), so the argument
is replaced before the function is called. At the edge the gradient is defined to be 0.
"""

import jax.numpy as jnp

from ._typing import Array, ArrayLike


def safe_sqrt(x: ArrayLike) -> Array:
    """sqrt(x) for x >= 0, with gradient 0 at x = 0."""
    positive = jnp.asarray(x) > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def safe_log(x: ArrayLike, at_zero: float = -jnp.inf) -> Array:
    """log(x) for x >= 0, with value ``at_zero`` and gradient 0 at x = 0."""
    positive = jnp.asarray(x) > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), at_zero)


def expand_right(x: ArrayLike, num_dims: int) -> Array:
    """Append ``num_dims`` dimensions of size 1, so that a batch broadcasts against its events."""
    x = jnp.asarray(x)
    return x.reshape(x.shape + (1,) * num_dims)
