r"""Transforms of columns that NumPyro does not have, for ``TransformedDistribution``.

    SinhArcsinh      y = sinh((asinh(x) + skew) / tail)           margins with skewness and heavy tails
    BySupport        y_j = x_j, exp(x_j) or sigmoid(x_j)          columns with different supports
    InsertConstants  R^d -> R^D                                   columns that never change

All are bijections on their image. The density of :class:`InsertConstants` is that of the d columns that vary.

References: Jones and Pewsey 2009 (sinh-arcsinh).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from ._checks import expected
from ._typing import Array, ArrayLike, Shape

__all__ = ["BySupport", "InsertConstants", "SinhArcsinh"]


_SUPPORTS = {
    "real": constraints.real,
    "positive": constraints.positive,
    "unit_interval": constraints.open_interval(0.0, 1.0),
}


def _library(x: Any) -> Any:
    """NumPy for NumPy arrays, so that data are taken apart in float64; JAX for all others."""
    return np if isinstance(x, np.ndarray) else jnp


class SinhArcsinh(Transform):
    """y = sinh((asinh(x) + skew) / tail), in each coordinate.

    Args:
        skew: 0 for none, > 0 for a longer tail to the right; a number or an array that broadcasts with x.
        tail: > 0; 1 keeps the tails, smaller is heavier.

    >>> heavy = SinhArcsinh(jnp.array(0.0), jnp.array(0.5))
    >>> round(float(heavy(2.0)), 2), round(float(heavy.inv(heavy(2.0))), 2)
    (8.94, 2.0)
    """

    domain = constraints.real
    codomain = constraints.real

    def __init__(self, skew: ArrayLike, tail: ArrayLike) -> None:
        self.skew, self.tail = skew, tail

    def __call__(self, x: ArrayLike) -> Any:
        xp = _library(x)
        return xp.sinh((xp.arcsinh(x) + self.skew) / self.tail)

    def _inverse(self, y: ArrayLike) -> Any:
        xp = _library(y)
        return xp.sinh(xp.arcsinh(y) * self.tail - self.skew)

    def log_abs_det_jacobian(self, x: ArrayLike, y: ArrayLike, intermediates: Any = None) -> Any:
        xp = _library(x)
        return 0.5 * (xp.log1p(y * y) - xp.log1p(x * x)) - xp.log(self.tail)

    def forward_shape(self, shape: Shape) -> Shape:
        return np.broadcast_shapes(shape, np.shape(self.skew), np.shape(self.tail))

    def inverse_shape(self, shape: Shape) -> Shape:
        return self.forward_shape(shape)

    @property
    def sign(self) -> int:
        return 1

    def tree_flatten(self) -> Any:
        return (self.skew, self.tail), (("skew", "tail"), {})

    def eq(self, other: object, static: bool = False) -> bool:
        return (
            isinstance(other, SinhArcsinh)
            and np.array_equal(self.skew, other.skew)
            and np.array_equal(self.tail, other.tail)
        )


class _BySupport(constraints.Constraint):
    """A vector whose columns have supports of their own."""

    event_dim = 1

    def __init__(self, supports: tuple[str, ...]) -> None:
        self.supports = supports

    def __call__(self, x: Any) -> Any:
        xp = _library(x)
        holds = [_SUPPORTS[name](x[..., index]) for index, name in enumerate(self.supports)]
        return xp.stack(holds, axis=-1).all(axis=-1)

    def feasible_like(self, prototype: Any) -> Any:
        middle = [0.0 if name == "real" else 0.5 for name in self.supports]
        return jnp.broadcast_to(jnp.asarray(middle), jnp.shape(prototype))

    def tree_flatten(self) -> Any:
        return (), ((), {"supports": self.supports})

    def eq(self, other: object, static: bool = False) -> bool:
        return isinstance(other, _BySupport) and self.supports == other.supports


class BySupport(Transform):
    """One of three maps for each column of a vector: to all reals, to positive numbers, to the unit interval.

    Args:
        supports: ``"real"``, ``"positive"`` or ``"unit_interval"``, one for each column.

    Raises:
        ValueError: for another name.

    >>> BySupport(("real", "positive"))(jnp.zeros(2)).tolist()
    [0.0, 1.0]
    """

    domain = constraints.real_vector

    def __init__(self, supports: tuple[str, ...]) -> None:
        for name in supports:
            if name not in _SUPPORTS:
                raise ValueError(expected(f"supports out of {', '.join(_SUPPORTS)}", repr(name), "Choose one."))
        self.supports = tuple(supports)

    @property
    def codomain(self) -> constraints.Constraint:
        return _BySupport(self.supports)

    def __call__(self, x: ArrayLike) -> Array:
        positive, unit = self._masks()
        x = jnp.asarray(x)
        return jnp.where(positive, jnp.exp(jnp.where(positive, x, 0)), jnp.where(unit, jax.nn.sigmoid(x), x))

    def _inverse(self, y: ArrayLike) -> Any:
        xp = _library(y)
        positive, unit = self._masks()
        inside = xp.where(unit, y, 0.5)
        logit = xp.log(inside) - xp.log1p(-inside)
        return xp.where(positive, xp.log(xp.where(positive, y, 1)), xp.where(unit, logit, y))

    def log_abs_det_jacobian(self, x: ArrayLike, y: ArrayLike, intermediates: Any = None) -> Array:
        positive, unit = self._masks()
        slope = jax.nn.log_sigmoid(x) + jax.nn.log_sigmoid(-jnp.asarray(x))
        return jnp.where(positive, x, jnp.where(unit, slope, 0)).sum(-1)

    def _masks(self) -> tuple[np.ndarray, np.ndarray]:
        names = np.asarray(self.supports)
        return names == "positive", names == "unit_interval"

    def tree_flatten(self) -> Any:
        return (), ((), {"supports": self.supports})

    def eq(self, other: object, static: bool = False) -> bool:
        return isinstance(other, BySupport) and self.supports == other.supports


class InsertConstants(Transform):
    """Columns that never change, put between those that vary.

    Args:
        constants: shape (D,), one for each column; None or NaN where a column varies.

    Raises:
        ValueError: if no column varies.

    >>> InsertConstants((None, 3.0, None))(jnp.array([1.0, 2.0])).tolist()
    [1.0, 3.0, 2.0]
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, constants: Any) -> None:
        # None and not NaN: the settings of a transform are compared.
        numbers = np.asarray(constants, np.float64).tolist()
        self.constants = tuple(None if math.isnan(number) else number for number in numbers)
        if not len(self._varies):
            raise ValueError(expected("a column that varies", constants, "Constants alone have no distribution."))

    @property
    def _varies(self) -> np.ndarray:
        return np.flatnonzero([number is None for number in self.constants])

    def __call__(self, x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        numbers = jnp.asarray([number or 0.0 for number in self.constants], x.dtype)
        filled = jnp.broadcast_to(numbers, (*x.shape[:-1], len(self.constants)))
        return filled.at[..., self._varies].set(x)

    def _inverse(self, y: ArrayLike) -> Any:
        return y[..., self._varies]  # type: ignore[index]

    def log_abs_det_jacobian(self, x: ArrayLike, y: ArrayLike, intermediates: Any = None) -> Array:
        return jnp.zeros(jnp.shape(x)[:-1], jnp.result_type(x))

    def forward_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], len(self.constants))

    def inverse_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], len(self._varies))

    def tree_flatten(self) -> Any:
        return (), ((), {"constants": self.constants})

    def eq(self, other: object, static: bool = False) -> bool:
        return isinstance(other, InsertConstants) and self.constants == other.constants
