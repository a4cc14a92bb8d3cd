"""Arguments of a model split into arrays, which a compiled function takes, and the rest, for which it is compiled."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["NEEDS_VALUES", "Static", "as_static", "join", "split_arguments", "without_arrays"]

_ARRAYS = (jax.Array, np.ndarray)
NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What JAX raises where a function asks for the values of an abstract array."""


class Static:
    """The non-array arguments of a call; equal when they are, so that an equal call is not compiled again."""

    def __init__(self, leaves: tuple, tree: Any) -> None:
        self.leaves = leaves
        self.tree = tree

    def __hash__(self) -> int:
        return hash(self.tree)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static) or self.tree != other.tree or len(self.leaves) != len(other.leaves):
            return False
        return all(_same(a, b) for a, b in zip(self.leaves, other.leaves, strict=True))


def split_arguments(args: tuple, kwargs: Mapping[str, Any]) -> tuple[list, Static]:
    """Arrays (None for other leaves), and the other leaves with the tree's structure."""
    leaves, tree = jax.tree.flatten((args, dict(kwargs)))
    arrays = [leaf if _is_array(leaf) else None for leaf in leaves]
    rest = tuple(None if array is not None else leaf for array, leaf in zip(arrays, leaves, strict=True))
    return arrays, Static(rest, tree)


def without_arrays(arrays: list, static: Static) -> tuple[list, Static]:
    """All arrays among the rest, for a model that asks for their values.

    Copies: an array that is changed in place must not be taken for what was compiled.
    """
    leaves = [rest if array is None else array for array, rest in zip(arrays, static.leaves, strict=True)]
    values = tuple(leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves)
    return [None] * len(values), Static(values, static.tree)


def as_static(args: tuple, kwargs: Mapping[str, Any]) -> Static:
    """A whole call, arrays included, to tell whether another one is the same."""
    return without_arrays(*split_arguments(args, kwargs))[1]


def join(arrays: list, static: Static) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments again."""
    leaves = [rest if array is None else array for array, rest in zip(arrays, static.leaves, strict=True)]
    return jax.tree.unflatten(static.tree, leaves)


def _is_array(leaf: Any) -> bool:
    """Whether a compiled function takes it: numbers, truth values, random keys."""
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "OSUMm")


def _numbers(array: Any) -> Any:
    return jax.random.key_data(array) if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key) else array


def _same(a: Any, b: Any) -> bool:
    try:
        if isinstance(a, _ARRAYS) and isinstance(b, _ARRAYS):
            if a.dtype != b.dtype:
                return False
            a, b = _numbers(a), _numbers(b)
            return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
        return type(a) is type(b) and bool(a == b)
    except (TypeError, ValueError):  # things without a truth value are the same only if they are one thing
        return a is b
