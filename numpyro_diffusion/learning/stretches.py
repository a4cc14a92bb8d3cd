"""Rows in stretches that fit into memory, whether they are there or in a file."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._typing import Shape

__all__ = ["pieces", "spread", "stretches", "thinned"]

_NUMBERS = 2**18  # in a stretch: 2 MB of float64


def stretches(values: Any) -> Iterator[tuple[int, np.ndarray]]:
    """The first index of each stretch, and its rows.

    Args:
        values: an array or :class:`~..training.disk.ReadRows`, shape (n, ...).
    """
    size = _size(values.shape)
    for start in range(0, len(values), size):
        yield start, values[start : start + size]


def pieces(rows: np.ndarray, shape: Shape) -> Iterator[np.ndarray]:
    """Indices of rows of data of a shape, in stretches."""
    size = _size(shape)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _size(shape: Shape) -> int:
    return max(1, _NUMBERS // max(1, int(np.prod(shape[1:]))))


def spread(count: int, most: int) -> np.ndarray:
    """At most so many indices of ``count`` rows, evenly spread; all where there are no more."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(int)


def thinned(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of some rows or indices, evenly spread."""
    return rows[spread(len(rows), most)]
