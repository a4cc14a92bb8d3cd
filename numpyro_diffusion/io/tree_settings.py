r"""A pytree of arrays as JSON and named tensors, and back, exactly.

    null, true, 3, 0.5, "v"                          themselves
    {"dict": {key: node}}, {"list": [node]}, {"tuple": [node]}
    {"numpy": name}, {"jax": name}, {"weak": name}   an array; "weak" is a jax array that takes on others' dtype
    {"key": name, "impl": "threefry2x32"}            a typed random key

Names are the path, as in ``params/mlp/linear/w``. NumPy arrays come back as NumPy arrays and jax arrays as jax arrays:
which of the two multiplies decides the last bit. A jax array of 64-bit numbers cannot be made without x64; that is
an error and not a silent rounding. Devices and sharding are not kept.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import expected, is_concrete
from .tensor_file import DTYPES, shown

__all__ = ["decode", "encode", "wrong"]

_KEY_IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
_FOREIGN = "The file was not written by numpyro_diffusion.save."


def encode(tree: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    """The node of a tree; its arrays are added to ``tensors``.

    Args:
        tree: dicts with string keys, lists and tuples of arrays, random keys, numbers, strings and None.
        name: the tree's own path.
        tensors: by name.

    Raises:
        ValueError: for anything else, with its path.
    """
    if tree is None or type(tree) in (bool, str):
        return tree
    if type(tree) in (int, float):
        if not -(2**63) <= tree < 2**63:
            raise ValueError(expected(f"a finite number within 64 bits at {name!r}", tree, "Make it an array."))
        return tree
    if type(tree) is dict:
        if not all(isinstance(key, str) for key in tree):
            raise ValueError(expected(f"strings as keys of the dict at {name!r}", list(tree), "Rename them."))
        return {"dict": {key: encode(child, f"{name}/{key}", tensors) for key, child in tree.items()}}
    if type(tree) in (list, tuple):
        children = [encode(child, f"{name}/{index}", tensors) for index, child in enumerate(tree)]
        return {type(tree).__name__: children}
    return _encode_array(tree, name, tensors)


def _encode_array(array: Any, name: str, tensors: dict[str, np.ndarray]) -> dict[str, str]:
    if not isinstance(array, (np.ndarray, np.generic, jax.Array)):
        raise ValueError(
            expected(
                f"arrays in dicts, lists and tuples at {name!r}",
                type(array).__name__,
                "Turn other containers into dicts, as flax.serialization.to_state_dict or dataclasses.asdict do.",
            )
        )
    if not is_concrete(array):
        raise ValueError(expected(f"a concrete array at {name!r}", "a traced one", "Save outside of jax.jit."))
    extra = {}
    kind = "numpy"
    if isinstance(array, jax.Array):
        kind = "weak" if getattr(array, "weak_type", False) else "jax"
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            kind, extra = "key", {"impl": str(jax.random.key_impl(array))}
            if extra["impl"] not in _KEY_IMPLEMENTATIONS:
                raise ValueError(
                    expected(
                        f"a key of {', '.join(_KEY_IMPLEMENTATIONS)} at {name!r}", extra["impl"], "Use one of JAX's."
                    )
                )
            array = jax.random.key_data(array)
    array = np.asarray(array)
    if array.dtype.newbyteorder("=") not in DTYPES.values():
        names = ", ".join(str(dtype) for dtype in DTYPES.values())
        raise ValueError(expected(f"a dtype out of {names} at {name!r}", array.dtype, "Convert it."))
    name = _unused(name, tensors)
    tensors[name] = array
    return {kind: name, **extra}


def _unused(name: str, tensors: dict[str, np.ndarray]) -> str:
    """Keys may contain slashes, as Haiku's do, so two paths can read the same."""
    candidate, count = name, 1
    while candidate in tensors:
        count += 1
        candidate = f"{name}#{count}"
    return candidate


def decode(node: Any, tensors: dict[str, np.ndarray]) -> Any:
    """The tree of a node; its arrays are taken out of ``tensors``, each once.

    Raises:
        ValueError: for a node that is none, a tensor that is missing, or 64-bit jax arrays without x64.
    """
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if not isinstance(node, dict) or not node:
        raise wrong("a value", node)
    kind, content = next(iter(node.items()))
    if set(node) != ({"key", "impl"} if kind == "key" else {kind}):
        raise wrong("one kind of value", node)
    if kind == "dict" and isinstance(content, dict):
        return {key: decode(child, tensors) for key, child in content.items()}
    if kind in ("list", "tuple") and isinstance(content, list):
        children = [decode(child, tensors) for child in content]
        return children if kind == "list" else tuple(children)
    if kind not in _ARRAYS or not isinstance(content, str):
        raise wrong(f"a dict, list, tuple or one of {', '.join(_ARRAYS)}", node)
    if content not in tensors:
        raise ValueError(expected(f"a tensor {shown(content)}, once", "none", _FOREIGN))
    values = tensors.pop(content)
    if kind == "key":
        return _key(content, values, node["impl"])
    return _ARRAYS[kind](content, values)


def _jax_array(name: str, values: np.ndarray) -> jax.Array:
    array = jnp.asarray(values)
    if array.dtype != values.dtype:
        raise ValueError(
            expected(
                f"64-bit arrays to be enabled for {shown(name)}, of dtype {values.dtype}",
                f"JAX in 32 bits, which would round it to {array.dtype}",
                'Call jax.config.update("jax_enable_x64", True) first, or save the prior with 32-bit parameters.',
            )
        )
    return array


def _weak_array(name: str, values: np.ndarray) -> jax.Array:
    array = _jax_array(name, values)
    if array.dtype not in (jnp.result_type(int), jnp.result_type(float)):
        return array
    # Setting entries of a weakly typed array keeps its type; JAX has no other public way to make one from values.
    return jnp.full(array.shape, 0 if array.dtype == jnp.result_type(int) else 0.0).at[...].set(array)


def _key(name: str, values: np.ndarray, implementation: Any) -> jax.Array:
    if implementation not in _KEY_IMPLEMENTATIONS:
        raise wrong(f"a random key of {', '.join(_KEY_IMPLEMENTATIONS)}", implementation)
    try:
        return jax.random.wrap_key_data(_jax_array(name, values), impl=implementation)
    except TypeError as error:
        raise wrong(f"a random key at {shown(name)}", f"{values.dtype} of shape {values.shape}") from error


_ARRAYS: dict[str, Callable[..., Any]] = {
    "numpy": lambda _, values: values,
    "jax": _jax_array,
    "weak": _weak_array,
    "key": _key,
}


def wrong(wanted: str, found: Any) -> ValueError:
    """The error of a setting that no file of ours has."""
    return ValueError(expected(f"{wanted} in the file's settings", shown(found), _FOREIGN))
