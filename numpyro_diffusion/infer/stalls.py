"""A Markov chain whose particles no longer change x^0 says so, from inside compiled code.

When the weights collapse onto the retained path, its x^0 is chosen again and again. Nothing in the draws looks wrong:
they are all the same, and a short run of several chains may even agree. MCMC offers a kernel no place for a warning, so
the compiled step calls back to Python at the one draw where a stall is found; other draws cost a comparison.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array

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
    begins = stalled == STALL

    def call_back(begins: Array, effective_size: Array) -> None:
        jax.debug.callback(_Warning(num_particles), begins, effective_size)

    def pass_over(begins: Array, effective_size: Array) -> None:
        del begins, effective_size

    jax.lax.cond(begins.any(), call_back, pass_over, begins, effective_size.min())


class _Warning:
    """Compared by what it says, so that the same program is compiled once."""

    def __init__(self, num_particles: int) -> None:
        self.num_particles = num_particles

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Warning) and other.num_particles == self.num_particles

    def __hash__(self) -> int:
        return hash((type(self), self.num_particles))

    def __call__(self, begins: Array, effective_size: Array) -> None:
        count = int(np.sum(begins))
        if not count:  # where cond became a select, under a vmap that is not ours
            return
        warnings.warn(
            f"The particles have not changed x^0 for {STALL} draws, in {count} of {np.size(begins)} chains and "
            f"elements: the effective size fell to {float(effective_size):.1f} of {self.num_particles} particles, and "
            "draws that repeat each other say nothing of the posterior. Take more particles (num_particles), a closer "
            "twist ('gaussian' for Normal observations), or a schedule with more steps.",
            stacklevel=2,
        )
