"""Rows of an iterator in a temporary file: it passes once, and all rows are looked at before the first is learned."""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .._checks import expected
from ..training.disk import RowsOnDisk
from .cells import numbers_of

__all__ = ["spooled"]


class _Batch(NamedTuple):
    values: np.ndarray  # shape (k, ...)
    names: tuple[str, ...] | None  # of the columns of a table


def spooled(data: Iterator[Any], max_rows: int) -> tuple[RowsOnDisk, tuple[str, ...] | None]:
    """Rows or batches of rows, to the end, in a file that is deleted when it is closed; names where they are tables.

    Batches of floating-point numbers, bytes or truth values keep their type; all others become float64.

    Raises:
        TypeError: for what are no numbers; for pairs of arrays, such as data and labels.
        ValueError: for no rows, more than ``max_rows``, rows of different shapes, types or columns.
    """
    first = next(data, None)
    if first is None:
        raise ValueError(expected("an iterator with at least one row", "none", "Pass data."))
    begin = _batch(first, 0)
    dtype = begin.values.dtype
    if dtype.kind != "f" and dtype.itemsize > 1:
        dtype = np.dtype(np.float64)
    row_shape = begin.values.shape[1:]
    file: Any = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with its last reader)
    try:
        count = _write(itertools.chain([first], data), file, begin, dtype, max_rows)
    except BaseException:
        file.close()
        raise
    return RowsOnDisk(file, dtype, (count, *row_shape)), begin.names


def _write(parts: Iterable[Any], file: BinaryIO, like: _Batch, dtype: np.dtype, max_rows: int) -> int:
    """How many rows were written."""
    row_shape, count = like.values.shape[1:], 0
    for part in parts:
        batch, names = _batch(part, count)
        if names != like.names:
            wanted, got = (", ".join(some) if some else "no names" for some in (like.names, names))
            cure = "Select the same columns in the same order in each piece."
            raise ValueError(expected(f"columns {wanted} in every piece", f"{got} at row {count}", cure))
        if batch.shape[1:] != row_shape:
            got = f"{row_shape}, and {batch.shape[1:]} at row {count}"
            raise ValueError(expected("rows of one shape", got, "Yield rows, or batches of rows."))
        cast = np.ascontiguousarray(batch, dtype)
        if not np.array_equal(cast, batch, equal_nan=True):
            got = f"{dtype}, and {batch.dtype} at row {count}"
            raise ValueError(expected("rows of one type", got, "Convert them in the iterator, all to float."))
        count += len(batch)
        if count > max_rows:
            cure = "Pass itertools.islice(data, number) of an endless one, or raise max_rows; all must fit on the disk."
            raise ValueError(expected(f"an iterator that ends after max_rows={max_rows} rows", "more", cure))
        file.write(cast.tobytes())
    file.flush()
    return count


def _batch(part: Any, row: int) -> _Batch:
    """One row, or several, as numbers."""
    if hasattr(part, "columns") and hasattr(part, "to_numpy"):
        return _of_table(part, row)
    _check_no_pair(part, row)
    array = np.asarray(part)
    array = array if array.ndim in (2, 4) else array[None]
    return _Batch(array if array.dtype.kind in "biuf" else numbers_of(_rows_from(row), array), None)


def _of_table(part: Any, row: int) -> _Batch:
    array = np.asarray(part.to_numpy())
    names = tuple(map(str, part.columns))
    if array.dtype.kind in "biuf":
        return _Batch(array, names)
    where = f" of the piece at row {row}"
    columns = [numbers_of(f"column {name!r}", array[:, index], where) for index, name in enumerate(names)]
    return _Batch(np.stack(columns, axis=1), names)


def _check_no_pair(part: Any, row: int) -> None:
    """Batches of several things are no rows. Lists of rows, and of images, are."""
    if not isinstance(part, tuple | list):
        return
    ranks = {np.ndim(one) for one in part if hasattr(one, "shape")}
    most = max(ranks, default=0)
    if (isinstance(part, tuple) and most) or (most > 1 and ranks != {3}):
        got = f"a {type(part).__name__} of {len(part)} arrays at row {row}"
        raise TypeError(expected("rows or batches of rows", got, "Yield one array: (batch for batch, _ in data)."))


def _rows_from(row: int) -> str:
    return f"the iterator's rows from {row} on"
