"""Named arrays as data sets, of which the installed ArviZ makes its tree (:mod:`.._compat.arviz`)."""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._checks import expected

__all__ = ["Variable", "as_dataset"]


class Variable(NamedTuple):
    """An array with a name for each axis."""

    dims: tuple[str, ...]
    values: np.ndarray


def as_dataset(variables: Mapping[str, Variable], coords: Mapping[str, Any]) -> Any:
    """Variables as an ``xarray.Dataset`` in which every dimension has coordinates: those given, or 0, 1, ...

    Raises:
        ValueError: if coordinates are not as many as the axis is long, or two axes of one name differ in length.
    """
    index: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for name, variable in variables.items():
        for dim, size in zip(variable.dims, variable.values.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    expected(
                        f"one length of dimension {dim!r}",
                        f"{sizes[dim]} and, in {name!r}, {size}",
                        "Give the axes different names by dims={...}.",
                    )
                )
            index[dim] = np.asarray(coords[dim]) if dim in coords else np.arange(size)
            if index[dim].shape != (size,):
                raise ValueError(
                    expected(f"{size} coordinates of {dim!r}", f"shape {index[dim].shape}", "Give one to each place.")
                )
    return importlib.import_module("xarray").Dataset(dict(variables), coords=index)
