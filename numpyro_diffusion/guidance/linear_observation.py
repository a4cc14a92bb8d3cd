r"""A Normal observation of a chain's state that is linear in it, y = A x^0 + noise: what guidance of it shares."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .._checks import check_finite, expected, is_concrete
from .._typing import Array, ArrayLike, Shape
from ..chains import ReverseChain

__all__ = ["LinearObservation"]


class LinearObservation:
    """What is seen of x^0. Base of guidance, which is registered as a pytree of these fields and its own.

    Args:
        matrix: A, shape (m, event...).
        value: y, shape (m,), or (batch..., m).
        noise_scale: standard deviations of the noise, > 0, shape () or (m,).
        mask: booleans that broadcast to the value's shape, False for a number that was not seen; its value may be
            anything, NaN too. None: all were seen.

    Raises:
        ValueError: for shapes that do not agree, a mask of another shape or dtype, values that are not finite where
            they were seen, or a noise_scale that is not positive.
    """

    matrix: ArrayLike
    value: ArrayLike
    noise_scale: ArrayLike
    mask: ArrayLike | None

    def __init__(
        self, matrix: ArrayLike, value: ArrayLike, noise_scale: ArrayLike, mask: ArrayLike | None = None
    ) -> None:
        rows, scales = jnp.shape(matrix)[:1], jnp.shape(noise_scale)
        if not rows or jnp.shape(value)[-1:] != rows or scales not in ((), rows):
            raise ValueError(
                expected(
                    "matrix (m, event...), value (m,) or (batch..., m), noise_scale () or (m,)",
                    f"shapes {jnp.shape(matrix)}, {jnp.shape(value)}, {scales}",
                    "The matrix has one row for each observed number.",
                )
            )
        if is_concrete(noise_scale) and not np.all(np.asarray(noise_scale) > 0):
            raise ValueError(
                expected("noise_scale > 0", noise_scale, "For numbers that are known exactly use GaussianFactor.")
            )
        check_finite("matrix", matrix)
        if mask is not None:
            _check_mask(mask, jnp.shape(value))
        if is_concrete((value, mask)):
            check_finite("value", value if mask is None else np.where(mask, value, 0))
        self.matrix = matrix
        self.value = value
        self.noise_scale = noise_scale
        self.mask = mask

    def rows(self, dtype: Any) -> Array:
        """A with its event flattened, shape (m, d)."""
        matrix = jnp.asarray(self.matrix, dtype)
        return matrix.reshape(matrix.shape[0], -1)

    def scales(self, dtype: Any) -> Array:
        """Standard deviations of the noise, shape (m,)."""
        return jnp.broadcast_to(jnp.asarray(self.noise_scale, dtype), jnp.shape(self.matrix)[:1])

    def seen(self, shape: Shape) -> Array:
        """Which numbers were seen, in a residual's shape."""
        return jnp.broadcast_to(jnp.asarray(True if self.mask is None else self.mask), shape)

    def residual(self, x_0: Array, chain: ReverseChain) -> Array:
        """The misfit y - A x0hat, shape (batch..., m); 0 where it was not seen.

        Raises:
            ValueError: if matrix or value do not fit the chain.
        """
        matrix = jnp.asarray(self.matrix, x_0.dtype)
        if matrix.shape[1:] != chain.state_shape:
            raise ValueError(
                expected(
                    f"a matrix of shape (m, *{chain.state_shape})",
                    f"shape {matrix.shape}",
                    "Each row has the shape of one x.",
                )
            )
        predicted = jnp.tensordot(x_0, matrix, axes=(tuple(range(-chain.state_dim, 0)), tuple(range(1, matrix.ndim))))
        value = jnp.asarray(self.value, x_0.dtype)
        seen = jnp.asarray(True if self.mask is None else self.mask)
        residual = jnp.where(seen, jnp.where(seen, value, 0) - predicted, 0)
        if residual.shape != predicted.shape:
            raise ValueError(
                expected(
                    f"a value that broadcasts to shape {predicted.shape}",
                    f"shape {jnp.shape(self.value)}",
                    "A batch of values needs a chain expanded to that batch.",
                )
            )
        return residual


def _check_mask(mask: ArrayLike, shape: Shape) -> None:
    try:
        fits = jnp.broadcast_shapes(jnp.shape(mask), shape) == shape and np.issubdtype(jnp.result_type(mask), np.bool_)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            expected(
                f"a mask of booleans that broadcasts to the value's shape {shape}",
                f"dtype {jnp.result_type(mask)}, shape {jnp.shape(mask)}",
                "It is False where a number was not seen: ~jnp.isnan(value).",
            )
        )
