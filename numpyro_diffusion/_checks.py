"""Checks of arguments and their messages: "Expected <property>; got <value>. <cure>."

Static facts (shapes, dtypes, step counts, names) are always checked. Values are checked whenever
they are concrete, so an eager call never turns a NaN into a number; inside ``jax.jit`` they cannot be.
"""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ._compat.jax import is_tracer
from ._typing import ArrayLike, Shape


def expected(wanted: str, got: Any, cure: str) -> str:
    """The text of every error: what was wanted, what came, what to do."""
    return f"Expected {wanted}; got {got}. {cure}"


def is_concrete(value: Any) -> bool:
    """Whether the values of an array can be looked at now (no leaf is a tracer)."""
    return not any(is_tracer(leaf) for leaf in jax.tree.leaves(value))


def on_host(value: Any, dtype: Any = None) -> np.ndarray:
    """An array of a finished run as NumPy's.

    Raises:
        TypeError: inside of ``jax.jit``, ``jax.grad`` or ``jax.vmap``, where it has no value yet.
    """
    if is_tracer(value):
        cure = "Return the result from the compiled function, and read it there."
        raise TypeError(expected("a result that is read outside of jax.jit, jax.grad and jax.vmap", "a tracer", cure))
    return np.asarray(value, dtype)


def first_index(bad: np.ndarray | np.bool_) -> tuple[int, ...]:
    """Where the first True stands, in row order."""
    return tuple(int(i) for i in np.argwhere(bad)[0])


def check_not_lazy(name: str, data: Any) -> None:
    """``data`` is no query of polars that has not been run.

    Raises:
        TypeError: if it is one.
    """
    if hasattr(data, "collect") and hasattr(data, "collect_schema"):
        raise TypeError(expected(f"{name} that are there", f"a {type(data).__name__}", "Pass its .collect()."))


def check_choice(name: str, value: Any, choices: Any) -> None:
    """``value`` is one of ``choices``, a ``Literal`` type of names.

    Raises:
        ValueError: with all of them.
    """
    names = get_args(choices)
    if value not in names:
        raise ValueError(expected(f"{name} one of {', '.join(names)}", repr(value), "Choose one of these names."))


def check_integer_at_least(name: str, value: Any, least: int, cure: str) -> int:
    """``value`` as a Python int, at least ``least``.

    Raises:
        ValueError: if it is no integer or too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(expected(f"{name} to be an integer >= {least}", repr(value), cure))
    return int(value)


def check_shape(name: str, value: Any, cure: str) -> Shape:
    """``value`` as a tuple of Python ints, each at least 1.

    Raises:
        ValueError: if it is no such tuple.
    """
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (None,)
    if not all(isinstance(size, (int, np.integer)) and size >= 1 for size in sizes):
        raise ValueError(expected(f"{name} to be a tuple of positive integers", repr(value), cure))
    return tuple(int(size) for size in sizes)


def check_trailing_shape(name: str, value: ArrayLike, event_shape: Shape, cure: str) -> Shape:
    """The leading (batch) shape of ``value``, whose trailing shape must be ``event_shape``.

    Raises:
        ValueError: if the trailing shape differs.
    """
    shape = jnp.shape(value)
    split = len(shape) - len(event_shape)
    if split < 0 or shape[split:] != event_shape:
        raise ValueError(expected(f"trailing dimensions {event_shape} for {name}", f"shape {shape}", cure))
    return shape[:split]


def check_floating(name: str, value: ArrayLike, cure: str) -> None:
    """``value`` holds floating-point numbers.

    Raises:
        TypeError: if it holds anything else.
    """
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(expected(f"floating-point values for {name}", f"dtype {dtype}", cure))


def check_finite(name: str, value: ArrayLike) -> None:
    """``value`` has no NaN and no infinity (only checked when concrete).

    Raises:
        ValueError: with the count and the first bad index.
    """
    if not is_concrete(value):
        return
    bad = ~np.isfinite(np.asarray(value))
    if bad.any():
        first = first_index(bad)
        raise ValueError(
            expected(
                f"finite values for {name}",
                f"{int(bad.sum())} NaN or infinite of {bad.size}, first {np.asarray(value)[first]} at index {first}",
                "Remove or impute them first; a missing value can be a latent site instead.",
            )
        )


def check_binary(name: str, value: ArrayLike) -> None:
    """``value`` holds only 0 and 1 (only checked when concrete).

    Raises:
        ValueError: with the first other value.
    """
    if not is_concrete(value):
        return
    array = np.asarray(value)
    bad = (array != 0) & (array != 1)
    if bad.any():
        first = first_index(bad)
        raise ValueError(
            expected(
                f"only 0 and 1 for {name}",
                f"{array[first]} at index {first} ({int(bad.sum())} of {bad.size} are neither)",
                "A Bernoulli kernel is for binary data: threshold the data, or use GaussianKernel.",
            )
        )
