r"""The covariances C_t of a network's errors, in two forms that have few numbers.

    C_t = U_t U_t^T + diag(D_t)                                  a low rank, and a diagonal
    C_t = S_t B^T (U_t U_t^T + diag(D_t)) B S_t                  the same of errors that are nearly *stationary*

In the second, errors stand on a grid, of a picture or a series. S_t are their standard deviations; their correlations
are nearly the same everywhere, so that cosines along the axes of the grid, the rows of B, are nearly its eigenvectors:
D_t is their spectrum, and U_t is what the place does to it. B is orthogonal, the product of one matrix for each axis.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_finite, expected, first_index, is_concrete
from .._pytree import register_pytree
from .._typing import Array, ArrayLike, Shape

__all__ = ["ErrorCovariance", "LevelCovariance", "along_axes"]


@register_pytree(data=("factor", "diagonal", "scale", "axes"), static=())
class LevelCovariance:
    """One C_t, never written out.

    Attributes:
        factor: U, shape (d, q).
        diagonal: D, shape (d,).
        scale: S, shape (d,), or None for 1.
        axes: orthogonal matrices, one for each axis of the grid; none where B is I.
    """

    def __init__(self, factor: Array, diagonal: Array, scale: Array | None, axes: tuple[Array, ...]) -> None:
        self.factor, self.diagonal, self.scale, self.axes = factor, diagonal, scale, axes

    def times(self, rows: Array) -> Array:
        """A C_t, for A of shape (..., d)."""
        inner = along_axes(self.axes, self._scaled(rows))
        moved = (inner @ self.factor) @ self.factor.T + inner * self.diagonal
        return self._scaled(along_axes([axis.T for axis in self.axes], moved))

    def square(self, errors: Array) -> Array:
        """e^T C_t^{-1} e, for e of shape (..., d)."""
        inner = along_axes(self.axes, errors if self.scale is None else errors / self.scale)
        divided = inner / self.diagonal
        along = divided @ self.factor
        solved = jax.scipy.linalg.cho_solve((self._capacitance(), True), along[..., None])[..., 0]
        return (inner * divided).sum(-1) - (along * solved).sum(-1)

    def nats(self, moment: Array) -> Array:
        """Minus the mean log density of errors with this second moment, (d, d), but for a constant."""
        root = self._capacitance()
        inner = moment if self.scale is None else moment / self.scale / self.scale[:, None]
        inner = along_axes(self.axes, along_axes(self.axes, inner).T)
        divided = self.factor / self.diagonal[:, None]
        solved = jax.scipy.linalg.cho_solve((root, True), divided.T)
        trace = (jnp.diagonal(inner) / self.diagonal).sum() - (solved * (divided.T @ inner)).sum()
        log_det = jnp.log(self.diagonal).sum() + 2 * jnp.log(jnp.diagonal(root)).sum()
        log_det = log_det if self.scale is None else log_det + 2 * jnp.log(self.scale).sum()
        return (log_det + trace) / 2

    def directions(self) -> Array:
        """S B^T U, shape (d, q): C_t without them is that of the diagonal alone."""
        return self._scaled(along_axes([axis.T for axis in self.axes], self.factor.T)).T

    def variances(self) -> Array:
        """Of each coordinate, shape (d,): the diagonal of C_t."""
        of_diagonal = along_axes([axis.T**2 for axis in self.axes], self.diagonal)
        return self._scaled(self._scaled(of_diagonal)) + (self.directions() ** 2).sum(-1)

    def _scaled(self, values: Array) -> Array:
        return values if self.scale is None else values * self.scale

    def _capacitance(self) -> Array:
        """The Cholesky factor of I + U^T D^{-1} U."""
        inner = self.factor.T @ (self.factor / self.diagonal[:, None])
        return jnp.linalg.cholesky(jnp.eye(inner.shape[-1], dtype=inner.dtype) + inner)


@register_pytree(data=("factor", "diagonal", "scale", "axes"), static=())
class ErrorCovariance:
    """Covariances C_t of a network's errors, for t = 1..T; see the module's text.

    Attributes:
        factor: U, shape (T, d, q), d the number of coordinates.
        diagonal: D, shape (T, d), > 0.
        scale: S, shape (T, d), > 0; None in the first form.
        axes: one orthogonal matrix for each axis of the grid, shapes (n, n) with product d; none in the first form.

    Raises:
        ValueError: for shapes that do not agree, and for numbers that are not finite, or a D or S that is not positive.
    """

    factor: Array
    diagonal: Array
    scale: Array | None
    axes: tuple[Array, ...]

    def __init__(self, factor: Array, diagonal: Array, scale: Array | None = None, axes: Sequence[Array] = ()) -> None:
        if jnp.ndim(factor) != 3 or factor.shape[:2] != diagonal.shape:
            got = f"shapes {factor.shape} and {diagonal.shape}"
            raise ValueError(expected("factor (T, d, q) and diagonal (T, d)", got, "Use error_covariance."))
        shape = None if scale is None else scale.shape
        if shape != (diagonal.shape if axes else None):
            wanted = f"a scale of shape {diagonal.shape} with axes, None without"
            raise ValueError(expected(wanted, shape, "Use error_covariance."))
        sizes = [jnp.shape(axis) for axis in axes]
        if axes and (any(size != size[:1] * 2 for size in sizes) or _product(sizes) != diagonal.shape[1]):
            wanted = f"square axes whose sizes have the product {diagonal.shape[1]}"
            raise ValueError(expected(wanted, f"shapes {sizes}", "Use error_covariance."))
        check_finite("factor", factor)
        _check_positive("diagonal", diagonal)
        if scale is not None:
            _check_positive("scale", scale)
        self.factor, self.diagonal, self.scale, self.axes = factor, diagonal, scale, tuple(axes)

    @property
    def levels(self) -> Array:
        """1..T."""
        return jnp.arange(1, len(self.diagonal) + 1)

    def at(self, t: ArrayLike, dtype: Any = None) -> LevelCovariance:
        """C_t of one t, which may be traced, in the numbers' own dtype or another one."""
        index = jnp.asarray(t) - 1
        factor, diagonal = jnp.asarray(self.factor, dtype)[index], jnp.asarray(self.diagonal, dtype)[index]
        scale = None if self.scale is None else jnp.asarray(self.scale, dtype)[index]
        return LevelCovariance(factor, diagonal, scale, tuple(jnp.asarray(axis, dtype) for axis in self.axes))

    def at_levels(self, levels: Sequence[int]) -> "ErrorCovariance":
        """Those of a respaced chain, which visits these levels t alone."""
        index = np.asarray(levels) - 1
        scale = None if self.scale is None else self.scale[index]
        return ErrorCovariance(self.factor[index], self.diagonal[index], scale, self.axes)

    def inflated(self, by: float) -> "ErrorCovariance":
        """All C_t times a number > 0."""
        return ErrorCovariance(self.factor * by**0.5, self.diagonal * by, self.scale, self.axes)

    def blocks(self, flat: Array) -> Array:
        """Numbers of several x side by side, shape (..., b d), as (..., b, d)."""
        return flat.reshape((*flat.shape[:-1], -1, self.diagonal.shape[-1]))

    def variances(self) -> Array:
        """Of each coordinate, shape (T, d): the diagonals of C_t."""
        return jax.lax.map(lambda t: self.at(t).variances(), self.levels)

    def directions(self) -> Array:
        """S B^T U, shape (T, d, q): what C_t has beside its diagonal form."""
        return jax.lax.map(lambda t: self.at(t).directions(), self.levels)

    def matrices(self) -> Array:
        """All C_t, shape (T, d, d)."""
        identity = jnp.eye(self.diagonal.shape[-1], dtype=self.diagonal.dtype)
        return jax.lax.map(lambda t: self.at(t).times(identity), self.levels)


def along_axes(matrices: Sequence[Array], values: Array) -> Array:
    """The product of one matrix for each axis of a grid, times values of shape (..., d); the values, without any."""
    if not matrices:
        return values
    grid = values.reshape((*values.shape[:-1], *(len(matrix) for matrix in matrices)))
    for i, matrix in enumerate(matrices):
        axis = i - len(matrices)
        grid = jnp.moveaxis(jnp.tensordot(grid, matrix, axes=(axis, 1)), -1, axis)
    return grid.reshape(values.shape)


def _product(sizes: Sequence[Shape]) -> int:
    return math.prod(size[0] for size in sizes)


def _check_positive(name: str, values: Array) -> None:
    check_finite(name, values)
    if is_concrete(values) and not (np.asarray(values) > 0).all():
        first = first_index(np.asarray(values) <= 0)
        got = f"{np.asarray(values)[first]} at index {first}"
        raise ValueError(expected(f"{name} > 0", got, "Use error_covariance."))
