r"""How far x^0 given x^t ~ N(x0hat, C_t) moves when coordinates of it are seen with noise that does not change.

With C_t = U U^T + diag(D), and with precisions P = diag(p) of what is seen, p_i = 0 where nothing is,

    Cov[x^0 | x^t, y] = (C_t^{-1} + P)^{-1} = V V^T + diag(h D),     h = 1 / (1 + p D),
    V = h U L^{-T},      L L^T = I + U^T diag(p h) U,

low rank and a diagonal again. The move of x0hat is this covariance times P (y - x0hat). All of it is known beforehand,
and no matrix of d by d numbers is written out, nor one of k by k: pictures of many pixels have their guidance. For
other observations, and where amplitude or noise change from one evaluation to the next, see :mod:`.spectrum`.
"""

import copy
import math

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import is_concrete
from .._pytree import register_pytree
from .._typing import Array, ArrayLike
from .covariances import ErrorCovariance
from .spectrum import LEAST_SHARE, Spectrum

__all__ = ["SeenCoordinates", "numbers_held", "spectrum_of"]


def spectrum_of(
    errors: ErrorCovariance, rows: Array, *, is_fixed: bool, noise: ArrayLike = 1.0
) -> "Spectrum | SeenCoordinates":
    """What tells the moves by an observation, in the form that has fewer numbers.

    Args:
        errors: C_t, of one of b equal blocks of n coordinates.
        rows: A, shape (E..., k, b, n).
        is_fixed: whether amplitude and noise are the same at every evaluation: 1, and ``noise``, shape ().
        noise: the variance of the numbers, if it is fixed.
    """
    seen = _coordinates(errors, rows) if is_fixed and is_concrete((rows, noise)) else None
    if seen is None:
        return Spectrum(errors, rows)
    return SeenCoordinates(errors.factor, errors.diagonal, rows.shape[-2], *seen, noise)


def numbers_held(errors: ErrorCovariance, rows: Array, *, is_fixed: bool) -> int:
    """How many numbers ``spectrum_of`` will hold, about."""
    *elements, count, blocks, size = rows.shape
    seen = _coordinates(errors, rows) if is_fixed and is_concrete(rows) else None
    width = count + blocks * size if seen is None else errors.factor.shape[-1] + 2
    return len(errors.factor) * math.prod(elements) * blocks * size * width


@register_pytree(data=("factor", "diagonal", "share", "index", "factors"), static=())
class SeenCoordinates:
    """The covariances of x^0 given x^t and what is seen, for every t; see :class:`.Spectrum`, in whose place it stands.

    Attributes:
        factor: V, shape (T, E..., b, n, q), of b equal blocks, d = b n.
        diagonal: h D, shape (T, E..., b, n).
        share: of each variance that is left, shape (T, E..., d).
        index: the coordinate of each number, shape (k,).
        factors: of each number, shape (E..., k).
    """

    def __init__(
        self, factor: Array, diagonal: Array, blocks: int, index: ArrayLike, factors: ArrayLike, noise: ArrayLike
    ) -> None:
        """U, shape (T, n, q), and D, shape (T, n), of one of ``blocks``; what is seen; the variance of its noise."""
        self.index, self.factors = jnp.asarray(index), jnp.asarray(factors, diagonal.dtype)
        size = blocks * diagonal.shape[-1]
        precision = jnp.zeros((*self.factors.shape[:-1], size)).at[..., self.index].add(self.factors**2 / noise)
        precision = precision.reshape((*precision.shape[:-1], blocks, -1))
        self.factor, self.diagonal, self.share = _given(factor, diagonal, precision)

    def kept_where(self, is_kept: Array) -> "SeenCoordinates":
        """The same, or one by which nothing moves, by a boolean ()."""
        kept = copy.copy(self)
        kept.factors = jnp.where(is_kept, self.factors, 0.0)
        kept.share = jnp.where(is_kept, self.share, 1.0)
        return kept

    def image(self, change: Array) -> Array:
        """As :meth:`.Spectrum.image`."""
        return jnp.asarray(self.factors, change.dtype) * change[..., self.index]

    def at(self, t: ArrayLike, residual: Array, amplitude: Array, noise: Array) -> tuple[Array, Array]:
        """As :meth:`.Spectrum.at`; amplitude 1, and the noise that it was made with."""
        index = jnp.asarray(t) - 1
        factor, diagonal, share = (
            jnp.asarray(part, residual.dtype)[index] for part in (self.factor, self.diagonal, self.share)
        )
        pulls = amplitude[..., None] * jnp.asarray(self.factors, residual.dtype) * residual / noise[..., None]
        flat = jnp.zeros((*pulls.shape[:-1], share.shape[-1]), residual.dtype).at[..., self.index].add(pulls)
        pull = flat.reshape((*flat.shape[:-1], *diagonal.shape[-2:]))
        along = jnp.einsum("...nq,...n->...q", factor, pull)
        moved = jnp.einsum("...nq,...q->...n", factor, along) + diagonal * pull
        shape = jnp.broadcast_shapes(share.shape, (*amplitude.shape, 1))
        return moved.reshape(flat.shape), jnp.broadcast_to(share, shape)


@jax.jit
def _given(factor: Array, diagonal: Array, precision: Array) -> tuple[Array, Array, Array]:
    def one(parts: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        factor, diagonal = parts
        left = 1 / (1 + precision * diagonal)
        inner = jnp.einsum("nq,...n,nr->...qr", factor, precision * left, factor)
        root = jnp.linalg.cholesky(jnp.eye(factor.shape[-1], dtype=factor.dtype) + inner)
        reached = jax.scipy.linalg.solve_triangular(
            root, jnp.broadcast_to(factor.T, (*root.shape[:-2], *factor.T.shape)), lower=True
        )
        given = left[..., None] * jnp.swapaxes(reached, -1, -2)
        variance = (given**2).sum(-1) + left * diagonal
        share = jnp.clip(variance / ((factor**2).sum(-1) + diagonal), LEAST_SHARE, 1.0)
        return given, left * diagonal, share.reshape((*share.shape[:-2], -1))

    return jax.lax.map(one, (factor, diagonal))


def _coordinates(errors: ErrorCovariance, rows: Array) -> tuple[np.ndarray, np.ndarray] | None:
    """Which coordinate each number shows, shape (k,), and with what factor, shape (E..., k), 0 for nothing.

    None where a number shows several coordinates, one is shown twice, or the elements E show different ones; where U
    has as many columns as there are numbers; and where C_t is no low rank and a diagonal.
    """
    if errors.axes or errors.factor.shape[-1] >= rows.shape[-3]:
        return None
    shown = np.asarray(rows).reshape((*rows.shape[:-2], -1))
    used = (shown != 0).any(axis=tuple(range(shown.ndim - 2)))
    if (used.sum(0) > 1).any() or (used.sum(1) > 1).any():
        return None
    index = used.argmax(1)
    return index, shown[..., np.arange(len(index)), index]
