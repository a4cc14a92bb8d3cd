"""Tables and lists as arrays of rows, before anything looks at them.

A table (pandas, polars, xarray) is what has ``to_numpy``; a list of numbers is a row, a list of lists an array. To JAX
a list is a tree with one leaf for each number, which no one means.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from .._checks import check_not_lazy, expected
from .._typing import PyTree
from .disk import from_memory_map

__all__ = ["Arrays", "as_arrays"]

_CURE = (
    "Pass numbers: drop columns of words and dates or code them as numbers, and convert what is left by "
    ".to_numpy(float) or numpy.asarray."
)


class Arrays(NamedTuple):
    """A pytree of arrays, and what their columns are called.

    Attributes:
        tree: as it came, with arrays in the place of tables and lists.
        columns: names by path of the array in the tree, where a table had some.
    """

    tree: PyTree
    columns: dict[str, list[str]]


def as_arrays(name: str, data: PyTree) -> Arrays:
    """Data with arrays in the place of tables and of lists of numbers, and readers in the place of memory maps.

    Raises:
        TypeError: for a table, list or array that holds anything but numbers, with its columns.
        ValueError: for a list whose rows have different lengths.
    """
    columns: dict[str, list[str]] = {}

    def convert(path: Any, leaf: Any) -> Any:
        where = name + (f" at {jax.tree_util.keystr(path)}" if path else "")
        check_not_lazy(where, leaf)
        if hasattr(leaf, "to_numpy"):
            columns[jax.tree_util.keystr(path)] = [str(column) for column in getattr(leaf, "columns", [])]
            return _of_table(where, leaf)
        return _checked(where, _of_list(where, leaf) if isinstance(leaf, list) else leaf)

    return Arrays(jax.tree_util.tree_map_with_path(convert, data, is_leaf=_is_whole), columns)


def _is_whole(node: Any) -> bool:
    """Whether a part of the tree becomes one array: a table, or a list of numbers or of such lists."""
    return hasattr(node, "to_numpy") or (isinstance(node, list) and bool(node) and _is_list_of_numbers(node))


def _is_list_of_numbers(node: Any) -> bool:
    if isinstance(node, (list, tuple)):
        return all(map(_is_list_of_numbers, node))
    return node is None or isinstance(node, (bool, int, float, str, np.generic))


def _of_list(where: str, rows: list) -> np.ndarray:
    try:
        return np.asarray(rows)
    except ValueError as error:
        lengths = sorted({len(row) if isinstance(row, (list, tuple)) else 1 for row in rows})
        raise ValueError(
            expected(f"{where} as a list of rows of one length", f"lengths {lengths}", "Pass an array of rows.")
        ) from error


def _of_table(where: str, table: Any) -> np.ndarray:
    array = np.asarray(table.to_numpy())
    if array.dtype.kind in "biufc":
        return array
    columns = {name: np.asarray(table[name].to_numpy()) for name in getattr(table, "columns", [])}
    found = ", ".join(f"{str(name)!r} of {c.dtype}" for name, c in columns.items() if c.dtype.kind not in "biufc")
    if columns and not found:  # numbers of several kinds, of which the library made objects
        return np.stack([column.astype(float) for column in columns.values()], axis=-1)
    raise TypeError(
        expected(f"{where} as a table of numbers", f"columns {found}" if found else f"dtype {array.dtype}", _CURE)
    )


def _checked(where: str, leaf: Any) -> Any:
    dtype = getattr(leaf, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "OSUmM":
        raise TypeError(expected(f"{where} as an array of numbers", f"dtype {dtype}", _CURE))
    return from_memory_map(leaf) if isinstance(leaf, np.memmap) else leaf
