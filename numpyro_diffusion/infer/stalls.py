"""A warning from inside compiled code where the particles of a Markov chain no longer change x^0.

When the weights collapse onto the retained path, its x^0 is chosen again and again. Nothing in the draws looks wrong:
they are all the same, and a short run of several chains may even agree. MCMC offers a kernel no place for a warning, so
the compiled step calls back to Python at the one draw where a stall is found. Other draws cost a comparison, also under
a ``vmap`` of the caller's. One more price: JAX keeps no program that calls back in its compilation cache on disk.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from .._typing import Array, ArrayLike

__all__ = ["count_stalled", "warn_of_stalls"]

# Draws without a change. A chain that moves in one draw of 20 is slow, and stalls so long once in 170 times.
STALL = 100


def count_stalled(stalled: Array, moved: Array) -> Array:
    """Draws since the particles last changed x^0, by element."""
    return jnp.where(moved, 0, stalled + 1)


def warn_of_stalls(stalled: Array, effective_size: Array, num_particles: int) -> None:
    """Warn once for each stall, when it has lasted ``STALL`` draws.

    Args:
        stalled: draws since a change, shape (chains..., elements...).
        effective_size: of the newest draw, shape (chains...).
        num_particles: N.
    """
    _call_back(stalled == STALL, effective_size, num_particles)


@custom_vmap
def _call_back(begins: Array, effective_size: Array, num_particles: ArrayLike) -> Array:
    def warn(begins: Array, effective_size: Array, num_particles: ArrayLike) -> None:
        jax.debug.callback(_warn, begins, effective_size, num_particles)

    def pass_over(begins: Array, effective_size: Array, num_particles: ArrayLike) -> None:
        del begins, effective_size, num_particles

    jax.lax.cond(begins.any(), warn, pass_over, begins, effective_size.min(), num_particles)
    return jnp.zeros(())


@_call_back.def_vmap
def _(axis_size: int, in_batched: list, begins: Array, effective_size: Array, num_particles: ArrayLike) -> tuple:
    """One question for all rows: a ``cond`` that is mapped would call back for each of them at every draw."""
    rows, sizes = (
        array if is_batched else jnp.broadcast_to(array, (axis_size, *array.shape))
        for array, is_batched in zip((begins, effective_size), in_batched[:2], strict=True)
    )
    return _call_back(rows, sizes, num_particles), False


def _warn(begins: Array, effective_size: Array, num_particles: ArrayLike) -> None:
    warnings.warn(
        f"The particles have not changed x^0 for {STALL} draws, in {int(np.sum(begins))} of {np.size(begins)} chains "
        f"and elements: the effective size fell to {float(effective_size):.1f} of {num_particles} particles, and "
        "draws that repeat each other say nothing of the posterior. Take more particles (num_particles), a closer "
        "twist ('gaussian' for Normal observations), or a schedule with more steps.",
        stacklevel=2,
    )
