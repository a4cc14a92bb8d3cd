r"""How far x^0 given x^t ~ N(x0hat, C_t) moves with a Normal observation, whatever its amplitude and its noise.

In units in which the noise of a reference is N(0, I) the observation is r = a A (x^0 - x0hat) + N(0, s^2 I). With the
eigenvalues of A C_t A^T = Q L Q^T, and B = C_t A^T Q, both known beforehand,

    E[x^0 | r] - x0hat        = B a (a^2 L + s^2)^{-1} Q^T r
    Var[x^0 | r] / Var[x^0]   = 1 - diag(B a^2 (a^2 L + s^2)^{-1} B^T) / diag C_t

so that a and s enter by the k numbers of a diagonal alone. They may differ from one evaluation to the next, and have
gradients, at the cost of two products with a vector. Assumed: an :class:`.ErrorCovariance`, which is never written out.
"""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._pytree import register_pytree
from .._small_matrices import symmetric
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from .covariances import ErrorCovariance

__all__ = ["LEAST_SHARE", "Spectrum", "conditioned_step"]

LEAST_SHARE = 0.02  # of a step's variance that stays: an average says little of the smallest


@register_pytree(data=("rows", "crossed", "basis", "values", "variance"), static=())
class Spectrum:
    """B, Q, L and diag C_t for every t, of d coordinates and k numbers, with a batch E of observations or without.

    Attributes:
        rows: A, shape (E..., k, d).
        crossed: B, shape (T, E..., d, k).
        basis: Q, shape (T, E..., k, k).
        values: L, shape (T, E..., k).
        variance: diag C_t, shape (T, d).
    """

    def __init__(self, errors: ErrorCovariance, rows: Array) -> None:
        """C_t of one of b equal blocks of n coordinates; A, shape (E..., k, b, n), d = b n."""
        self.rows = rows.reshape((*rows.shape[:-2], -1))
        self.crossed, self.basis, self.values = _decomposed(errors, rows)
        self.variance = jnp.tile(errors.variances(), (1, rows.shape[-2]))

    def kept_where(self, is_kept: Array) -> "Spectrum":
        """The same, or one by which nothing moves, by a boolean ()."""
        kept = copy.copy(self)
        kept.crossed = jnp.where(is_kept, self.crossed, 0.0)
        return kept

    def image(self, change: Array) -> Array:
        """A times a change of x^0, shape (batch..., d); shape (batch..., k)."""
        return jnp.einsum("...kd,...d->...k", jnp.asarray(self.rows, change.dtype), change)

    def at(self, t: ArrayLike, residual: Array, amplitude: Array, noise: Array) -> tuple[Array, Array]:
        """The move of x0hat and the share of each variance that is left.

        Args:
            t: 1..T; one number where there is a batch E.
            residual: r, shape (batch..., k).
            amplitude: a, shape (batch...).
            noise: s^2, shape (batch...), > 0.

        Returns:
            Two arrays of shape (batch..., d).
        """
        index = jnp.asarray(t) - 1
        crossed, basis, values, variance = (
            jnp.asarray(part, residual.dtype)[index] for part in (self.crossed, self.basis, self.values, self.variance)
        )
        amplitude, noise = amplitude[..., None], noise[..., None]
        gain = amplitude / (amplitude**2 * values + noise)
        shift = jnp.einsum("...dk,...k->...d", crossed, gain * jnp.einsum("...lk,...l->...k", basis, residual))
        left = 1 - jnp.einsum("...dk,...k->...d", crossed**2, amplitude * gain) / variance
        return shift, jnp.clip(left, LEAST_SHARE, 1.0)


def conditioned_step(chain: ReverseChain, step: dist.Normal, t: ArrayLike, shift: Array, share: Array) -> Any:
    """The step of p whose x^0 is moved by ``shift`` and keeps ``share`` of its variance, both of the state's shape."""
    bridge_gain, lower = chain.kernel.bridge_terms(chain.beside_state(t), shift)
    variance = lower + jnp.maximum(step.scale**2 - lower, 0.0) * share
    return dist.Normal(step.loc + bridge_gain * shift, jnp.sqrt(variance), validate_args=False)


@jax.jit
def _decomposed(errors: ErrorCovariance, rows: Array) -> tuple[Array, Array, Array]:
    def one(t: Array) -> tuple[Array, Array, Array]:
        crossed = errors.at(t).times(rows)
        values, basis = jnp.linalg.eigh(symmetric(jnp.einsum("...kbn,...lbn->...kl", rows, crossed)))
        crossed = jnp.swapaxes(crossed.reshape((*crossed.shape[:-2], -1)), -1, -2)
        return crossed @ basis, basis, jnp.maximum(values, 0.0)

    return jax.lax.map(one, errors.levels)
