"""Guidance in the units of the data, x = T(s), as guidance of the chain's states s.

A function of x is a function of s by composition, whatever T is. A Normal observation of x is one of s where T is
affine: x = b + L s.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import transforms as npt

from .._checks import expected
from .._typing import Array, ArrayLike, Shape
from ..transforms import InsertConstants

__all__ = ["affine_by_coordinate", "affine_rows", "of_states"]

_BY_COORDINATE = (npt.AffineTransform, npt.IdentityTransform)
_AFFINE = (*_BY_COORDINATE, npt.LowerCholeskyAffine, npt.PermuteTransform, npt.ReshapeTransform, InsertConstants)


def of_states(log_r: Callable[[Array], ArrayLike], transforms: Any) -> Any:
    """The function s -> log r(T(s)), a pytree of stable identity."""
    return jax.tree_util.Partial(_composed, npt.ComposeTransform(_parts(transforms)), log_r)


def affine_by_coordinate(transforms: Any, shape: Shape) -> tuple[Array, Array]:
    """Offset b and slope of x = b + slope * s, each broadcasting with ``shape``.

    Raises:
        ValueError: for a transform that is not affine, or that mixes coordinates.
    """
    parts = _check(transforms, _BY_COORDINATE, "affine transforms that keep coordinates apart", "Use MomentMatching.")
    at = lambda value: npt.ComposeTransform(parts)(jnp.full(shape, value, float))  # noqa: E731
    offset = at(0.0)
    return offset, at(1.0) - offset


def affine_rows(transforms: Any, rows: ArrayLike) -> tuple[Array, Array]:
    """The rows a L, and the numbers a b, of every row a: a x = a b + (a L) s.

    Args:
        transforms: T, from the inside out.
        rows: shape (m, shape of x).

    Raises:
        ValueError: for a transform that is not affine.
    """
    parts = _check(transforms, _AFFINE, "affine transforms", "Use ReconstructionGuidance.")
    rows = jnp.asarray(rows, float)
    transform = npt.ComposeTransform(parts)
    offset, pull = jax.vjp(transform, jnp.zeros(transform.inverse_shape(rows.shape[1:])))
    return jax.vmap(lambda row: pull(row)[0])(rows), jnp.tensordot(rows, offset, offset.ndim)


def _composed(transform: npt.Transform, log_r: Callable[[Array], ArrayLike], state: Array) -> ArrayLike:
    return log_r(transform(state))


def _parts(transforms: Any) -> list[Any]:
    """All transforms from the inside out, out of compositions and independent dimensions."""
    if isinstance(transforms, npt.ComposeTransform):
        return _parts(transforms.parts)
    if isinstance(transforms, npt.IndependentTransform):
        return _parts(transforms.base_transform)
    if isinstance(transforms, (list, tuple)):
        return [part for transform in transforms for part in _parts(transform)]
    if not isinstance(transforms, npt.Transform):
        raise TypeError(expected("NumPyro transforms", repr(transforms), "Pass prior.transforms."))
    return [transforms]


def _check(transforms: Any, allowed: tuple[type, ...], wanted: str, cure: str) -> list[Any]:
    parts = _parts(transforms)
    for part in parts:
        if not isinstance(part, allowed):
            raise ValueError(expected(wanted, type(part).__name__, cure))
    return parts
