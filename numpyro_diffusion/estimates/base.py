r"""What a named estimate of log p(x^0) is.

An estimator is a hashable object called with ``(rng_key, chain, x_0)``: x_0 has shape (batch..., event...), the result
has shape (batch...), in nats. Each call with the same key gives the same number.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from .._typing import Array
from ..chains import ReverseChain

__all__ = ["Estimator", "repeat"]


@runtime_checkable
class Estimator(Protocol):
    """A named estimate of log p(x^0)."""

    def __call__(self, rng_key: jax.Array, chain: ReverseChain, x_0: Array) -> Array: ...


def repeat(x_0: Array, count: int) -> Array:
    """x_0 with a new leading axis of ``count`` copies; without the axis for one, which spares XLA layout changes."""
    return x_0 if count == 1 else jnp.broadcast_to(x_0, (count, *x_0.shape))
