"""Rows of xarray's data sets and of ArviZ's draws, by the names of their dimensions. Neither package is imported.

Draws have the dimensions ``chain`` and ``draw``, in any order, or one that was stacked of both: a row is a draw, chains
one after the other. Of other data sets a row is a place along the first dimension, or the only one that all variables
have. Variables that share none, or several in different orders, are refused: their rows would be paired by chance.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._checks import expected

__all__ = ["columns_of_array", "columns_of_dataset", "is_array", "is_dataset", "names_along", "posterior_of"]

_CHAIN, _DRAW = "chain", "draw"

Columns = list[tuple[str, np.ndarray]]


def is_dataset(data: Any) -> bool:
    """Whether it is a ``Dataset`` with variables, or a node of a ``DataTree`` that has some; no frame."""
    return len(getattr(data, "data_vars", ())) > 0 and not hasattr(data, "to_numpy")


def is_array(data: Any) -> bool:
    """Whether it is a ``DataArray``."""
    return hasattr(data, "dims") and hasattr(data, "coords") and hasattr(data, "to_numpy")


def posterior_of(data: Any) -> Any:
    """The group of draws of ArviZ's ``InferenceData`` or ``DataTree``; None of all else."""
    if hasattr(data, "to_numpy") or not hasattr(data, "posterior"):
        return None
    return data.posterior if is_dataset(data.posterior) else None


def columns_of_dataset(data: Any) -> Columns:
    """Variables by name, shape (rows, ...).

    Raises:
        ValueError: for variables without a dimension of rows that all of them have.
    """
    arrays = list(data.data_vars.items())
    rows = _row_dimensions([array for _, array in arrays])
    if not rows:
        dims = {str(name): array.dims for name, array in arrays}
        cure = "Pass variables of the same rows, the rows' dimension first."
        raise ValueError(expected("one dimension of rows that all variables have", dims, cure))
    return [(str(name), _flat(array, rows)) for name, array in arrays]


def columns_of_array(data: Any) -> Columns | None:
    """A ``DataArray`` of draws as one column or several; None for another one, whose first dimension counts rows."""
    rows = _dimensions_of_draws([data])
    return [("x" if data.name is None else str(data.name), _flat(data, rows))] if rows else None


def names_along(data: Any) -> tuple[str, ...] | None:
    """The names along the second dimension of a ``DataArray``."""
    if len(data.dims) != 2 or data.dims[1] not in data.coords:
        return None
    return tuple(str(name) for name in np.asarray(data.coords[data.dims[1]]))


def _row_dimensions(arrays: Sequence[Any]) -> tuple[str, ...]:
    draws = _dimensions_of_draws(arrays)
    if draws:
        return draws
    shared = [dim for dim in arrays[0].dims if all(dim in array.dims for array in arrays)]
    is_first = bool(shared) and all(array.dims[0] == shared[0] for array in arrays)
    return (shared[0],) if is_first or len(shared) == 1 else ()


def _dimensions_of_draws(arrays: Sequence[Any]) -> tuple[str, ...]:
    if all(_CHAIN in array.dims and _DRAW in array.dims for array in arrays):
        return (_CHAIN, _DRAW)
    coords = arrays[0].coords
    if _CHAIN in coords and _DRAW in coords and coords[_CHAIN].dims == coords[_DRAW].dims:
        (stacked, *others) = coords[_CHAIN].dims or (None,)
        if not others and stacked is not None and all(stacked in array.dims for array in arrays):
            return (stacked,)
    return ()


def _flat(array: Any, rows: tuple[str, ...]) -> np.ndarray:
    values = np.asarray(array.transpose(*rows, ...))
    return values.reshape((-1, *values.shape[len(rows) :]))
