"""Parameters that a run begins with, in the place of those that its model would draw."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._checks import expected
from .._typing import PyTree

__all__ = ["check_init_params"]

_CURE = "Pass the params of a fit of the same network, or leave this name out: it then begins as the model draws it."


def check_init_params(given: Mapping[str, PyTree], fresh: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The given values as arrays of the types that the model has.

    Args:
        given: values by name of ``param`` and ``mutable`` sites.
        fresh: what the model has drawn, all names.

    Raises:
        ValueError: for a name that the model has not, another structure, another shape, or a value that is not finite;
            with its name.
        TypeError: for what is no mapping.
    """
    if not isinstance(given, Mapping):
        raise TypeError(
            expected("init_params as values by name", type(given).__name__, "Pass the params of an earlier result.")
        )
    return {name: _checked(name, value, fresh) for name, value in given.items()}


def _checked(name: str, value: PyTree, fresh: Mapping[str, PyTree]) -> PyTree:
    if name not in fresh:
        raise ValueError(
            expected(f"init_params of parameters of the model, {sorted(fresh)}", repr(name), "Name parameters of it.")
        )
    wanted, found = (_named(tree) for tree in (fresh[name], value))
    for path in sorted(wanted.keys() | found.keys()):
        shapes = [f"shape {jnp.shape(tree[path])}" if path in tree else "none" for tree in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(expected(f"init_params with {shapes[0]} at {name!r}{path}", shapes[1], _CURE))
        if not bool(jnp.isfinite(jnp.asarray(found[path])).all()):
            raise ValueError(
                expected(f"finite init_params at {name!r}{path}", "NaN or infinite values", "Begin with sound ones.")
            )
    leaves = zip(jax.tree.leaves(value), jax.tree.leaves(fresh[name]), strict=True)
    cast = [jnp.asarray(leaf, jnp.result_type(like)) for leaf, like in leaves]
    return jax.tree.unflatten(jax.tree.structure(fresh[name]), cast)


def _named(tree: PyTree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
