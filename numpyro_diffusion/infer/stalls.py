"""A warning from inside compiled code where a part of a Markov chain stands still.

When the weights collapse onto the retained path, its x^0 is chosen again and again; when every proposal of the inner
kernel is refused, the other sites keep their values. Nothing in the draws looks wrong: they are all the same, and a
short run of several chains may even agree. MCMC offers a kernel no place for a warning, so the compiled step calls back
to Python at the one draw where a stall is found. Other draws cost a comparison, also under a ``vmap`` of the caller's.
One more price: JAX keeps no program that calls back in its compilation cache on disk.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from .._typing import Array, ArrayLike
from .checklist import ADVICE

__all__ = ["count_stalled", "has_moved", "warn_of_stalls"]

# Draws without a change. A chain that moves in one draw of 20 is slow, and stalls so long once in 170 times.
STALL = 100


def count_stalled(stalled: Array, moved: Array) -> Array:
    """Draws since a part of the chain last changed: x^0 by element, or the other sites."""
    return jnp.where(moved, 0, stalled + 1)


def has_moved(before: dict[str, Array], after: dict[str, Array]) -> Array:
    """Whether a real number among the other sites has changed; True where there is none.

    A discrete site may be certain, and rightly stay.
    """
    real = [name for name in after if jnp.issubdtype(after[name].dtype, jnp.floating)]
    return jnp.stack([(before[name] != after[name]).any() for name in real]).any() if real else jnp.ones((), bool)


def warn_of_stalls(stalled: Array, inner_stalled: Array, effective_size: Array, num_particles: int) -> None:
    """Warn once for each stall, when it has lasted ``STALL`` draws.

    Args:
        stalled: draws since x^0 changed, shape (chains..., elements...).
        inner_stalled: draws since other sites changed, shape (chains...).
        effective_size: of the newest draw, shape (chains...).
        num_particles: N.
    """
    _call_back(stalled == STALL, inner_stalled == STALL, effective_size, num_particles)


@custom_vmap
def _call_back(begins: Array, inner_begins: Array, effective_size: Array, num_particles: ArrayLike) -> Array:
    arguments = begins, inner_begins, effective_size.min(), num_particles

    def warn(*arguments: ArrayLike) -> None:
        jax.debug.callback(lambda *values: _warn(*values), *arguments)  # found when called, not when traced

    def pass_over(*arguments: ArrayLike) -> None:
        del arguments

    jax.lax.cond(begins.any() | inner_begins.any(), warn, pass_over, *arguments)
    return jnp.zeros(())


@_call_back.def_vmap
def _(axis_size: int, in_batched: list, *arguments: Any) -> tuple:
    """One question for all rows: a ``cond`` that is mapped would call back for each of them at every draw."""
    *arrays, num_particles = arguments
    rows = (
        array if is_batched else jnp.broadcast_to(array, (axis_size, *array.shape))
        for array, is_batched in zip(arrays, in_batched[:3], strict=True)
    )
    return _call_back(*rows, num_particles), False


def _warn(begins: Array, inner_begins: Array, effective_size: Array, num_particles: ArrayLike) -> None:
    repeated = "draws that repeat each other say nothing of the posterior"
    if np.any(begins):
        warnings.warn(
            f"The particles have not changed x^0 for {STALL} draws, in {int(np.sum(begins))} of {np.size(begins)} "
            f"chains and elements: the effective size fell to {float(effective_size):.1f} of {num_particles} "
            f"particles, and {repeated}. Take more particles (num_particles), a closer twist ('gaussian' for Normal "
            f"observations), or a schedule with more steps. {ADVICE}",
            stacklevel=2,
        )
    if np.any(inner_begins):
        warnings.warn(
            f"The inner kernel has not changed the other sites for {STALL} draws, in {int(np.sum(inner_begins))} of "
            f"{np.size(inner_begins)} chains: it refuses every proposal, and {repeated}. Start elsewhere "
            "(init_params, the inner kernel's init_strategy), take more warm-up or a smaller step_size, or "
            f"reparameterise the sites. {ADVICE}",
            stacklevel=2,
        )
