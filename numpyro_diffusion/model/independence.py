r"""Whether the elements of a plate can be filtered one by one.

When all diffusion sites share one batch shape E (a plate) and log r is a sum of terms of one element each,
log r(x) = shared + sum_i log r_i(x_i), the posterior factorises. A site whose density depends on x without an axis of
the elements couples them. The terms of the others are tried: between two random states, exchanging a random subset
of elements must exchange exactly those elements' terms. It is tried 64 times, each time with new states, new values of
theta and a new subset; a coupling of two elements shows in one trial with probability 1/2, and for single bits
with 1/8. A model whose terms are not finite at one of these states counts as coupled, and its user is told
that it could not be found out.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import expected
from .._numerics import expand_right
from .._typing import Array, Shape

__all__ = ["by_element", "exchange", "why_coupled"]

_NUM_TRIALS = 64

Terms = dict[str, Array]


def by_element(log_prob: Array, shape: Shape) -> Array | None:
    """A site's log_prob summed to the elements' shape; None if it has no axis of the elements."""
    if log_prob.ndim < len(shape):
        return None
    log_prob = log_prob.sum(tuple(range(log_prob.ndim - len(shape))))
    ones = tuple(axis for axis, size in enumerate(shape) if size == 1)
    log_prob = log_prob.sum(ones, keepdims=True)
    return log_prob if log_prob.shape == shape else None


def exchange(subset: Array, ours: Array, theirs: Array) -> Array:
    """``theirs`` at the elements of the subset, ``ours`` at the others; leading axes are the elements'."""
    return jnp.where(expand_right(subset, ours.ndim - subset.ndim), theirs, ours)


def why_coupled(trial: Callable[[jax.Array], tuple[Terms, Terms]]) -> str:
    """Why elements cannot be told apart, in words; empty if they can.

    Args:
        trial: from a key to the terms of every site after an exchange, and what they should be: shape E each.

    Raises:
        ValueError: if the terms depend on tracers of the caller's.
    """
    try:
        with jax.ensure_compile_time_eval():
            return _try(jax.jit(trial))
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise ValueError(
            expected(
                "data that can be computed with, to find out whether the likelihood couples the elements of the plate",
                "traced ones",
                "Say elements='independent' or elements='joint'.",
            )
        ) from error


def _try(trial: Callable[[jax.Array], tuple[Terms, Terms]]) -> str:
    for key in jax.random.split(jax.random.key(1), _NUM_TRIALS):
        found, wanted = ([np.asarray(term, float) for term in terms.values()] for terms in trial(key))
        if not all(np.isfinite(term).all() for term in (*found, *wanted)):
            return "the likelihood is not finite at random states, where a coupling could have been found out"
        if not all(np.all(np.abs(a - b) <= 1e-5 * (1 + np.abs(b))) for a, b in zip(found, wanted, strict=True)):
            return "the likelihood couples the elements of the plate"
    return ""
