"""Any data to an array of floating-point rows with column names. Nothing is imported for what is not there.

Rows are float64: they are taken apart so, that a column of 10^6 +- 1 keeps its digits. Those of a file stay in the file
and are read where they are wanted; those of an iterator are written to one first, which goes with the last reader.
No column is lost: names that are alike as text are refused.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._checks import check_not_lazy, expected
from ..training.disk import ReadRows, from_memory_map
from .cells import numbers_of
from .iterators import spooled
from .labelled import columns_of_array, columns_of_dataset, is_array, is_dataset, names_along, posterior_of

__all__ = ["FloatRows", "Table", "read_table"]

MOST_ROWS = 10_000_000


class Table(NamedTuple):
    """Rows of numbers.

    Attributes:
        values: shape (n, columns), or (n, height, width, channels), float64; NaN where a cell is empty. An array, or
            a reader of a file.
        names: of the columns; empty for images.
        told: what was done to have them, in words.
    """

    values: Any
    names: tuple[str, ...]
    told: tuple[str, ...] = ()


class FloatRows(ReadRows):
    """Rows of a file in float64.

    Args:
        source: shape (n,) or (n, ...).
        kept: indices of the rows that are wanted; None for all.
    """

    dtype = np.dtype(np.float64)

    def __init__(self, source: ReadRows, kept: np.ndarray | None = None) -> None:
        self._source, self._kept = source, kept
        self.shape = (len(source) if kept is None else len(kept), *(source.shape[1:] or (1,)))

    def only(self, keep: np.ndarray) -> "FloatRows":
        """The rows for which ``keep`` is true, of which none was left out before."""
        return FloatRows(self._source, np.flatnonzero(keep))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows by index."""
        found = self._source[rows if self._kept is None else self._kept[rows]]
        return found.astype(np.float64).reshape(len(rows), *self.shape[1:])


def read_table(data: Any, max_rows: int = MOST_ROWS) -> Table:
    """The rows of what a user has.

    Args:
        data: an array or nested lists, shape (n,), (n, columns) or (n, height, width, channels); a table of pandas or
            polars; a mapping of names to columns; an xarray ``DataArray`` or ``Dataset`` whose first dimension counts
            rows; ArviZ draws, of which ``posterior`` is taken, a row for each draw of each chain; the path of a
            ``.npy`` file, or its memory map; an iterator of rows or batches, which is read to its end.
        max_rows: of an iterator, at most.

    Raises:
        TypeError: for a column of strings, dates or objects, with its name; for what cannot be read as a table.
        ValueError: for no rows, or rows that do not match; for an iterator that goes on.
        OSError: for a file that cannot be read.
    """
    check_not_lazy("data", data)
    if isinstance(data, str | bytes | os.PathLike):
        data = _read_file(os.fspath(data))
    draws = posterior_of(data)
    if draws is not None or is_dataset(data):
        return _from_columns(columns_of_dataset(data if draws is None else draws))
    if type(data).__name__ in ("InferenceData", "DataTree"):
        raise TypeError(expected("draws with a group 'posterior'", repr(list(data)), "Pass a table of the draws."))
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        # Of several columns with one name, data[name] is all of them.
        return _from_columns([(str(name), data[name].to_numpy()) for name in dict.fromkeys(data.columns)])
    if is_array(data):
        columns = columns_of_array(data)
        return _from_array(np.asarray(data), names_along(data)) if columns is None else _from_columns(columns)
    if hasattr(data, "to_numpy") and getattr(data, "name", None) is not None:
        return _from_columns([(str(data.name), data.to_numpy())])  # one column of a table
    if isinstance(data, Mapping):
        return _from_columns([(str(name), np.asarray(values)) for name, values in data.items()])
    if isinstance(data, Iterator):
        rows, names = spooled(data, max_rows)
        told = (f"an iterator of {len(rows)} rows, kept in a temporary file",)
        return _from_file(rows, names)._replace(told=told)
    if isinstance(data, np.memmap) and data.dtype.kind in "biuf":
        rows = from_memory_map(data)
        return _from_file(rows) if isinstance(rows, ReadRows) else _from_array(rows, None)
    if isinstance(data, np.ma.MaskedArray):
        data = np.ma.filled(data.astype(np.float64), np.nan)
    if getattr(getattr(data, "dtype", None), "names", None):  # a structured array
        return _from_columns([(name, np.asarray(data[name])) for name in data.dtype.names])
    return _from_array(_as_array(data), None)


def _read_file(path: Any) -> np.ndarray:
    if not str(path).endswith(".npy"):
        cure = "Read other files first, for example by pandas.read_csv, and pass what was read."
        raise TypeError(expected("data, or the path of a .npy file", repr(path), cure))
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        kind = type(error) if isinstance(error, OSError) else ValueError
        cure = "Write it by numpy.save from an array of numbers."
        text = expected(f"a .npy file that can be read, {path}", f"{type(error).__name__}: {error}", cure)
        raise (kind(error.errno, text) if isinstance(error, OSError) and error.errno else kind(text)) from error


def _from_file(rows: ReadRows, names: tuple[str, ...] | None = None) -> Table:
    _check_shape(rows.shape)
    names = _different(names) if names else _numbered(FloatRows(rows).shape[1])
    return Table(FloatRows(rows), () if rows.ndim == 4 else names)


def _as_array(data: Any) -> np.ndarray:
    if data is None or isinstance(data, set | frozenset) or hasattr(data, "toarray"):
        cure = "Pass data.toarray()." if hasattr(data, "toarray") else "Pass an array, a table or rows."
        raise TypeError(expected("data that are a table", "None" if data is None else type(data).__name__, cure))
    try:
        return np.asarray(data)
    except ValueError as error:  # of nested lists
        raise ValueError(expected("rows of equal length", str(error), "Pass one row of numbers for each.")) from error


def _from_array(array: np.ndarray, names: tuple[str, ...] | None) -> Table:
    _check_shape(array.shape)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim == 4:
        return Table(numbers_of("the images", array), ())
    names = names or _numbered(array.shape[1])
    if array.dtype.kind in "biuf":
        return Table(np.asarray(array, np.float64), names)
    columns = [numbers_of(f"column {name!r}", array[:, index]) for index, name in enumerate(names)]
    return Table(np.stack(columns, axis=1), names)


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) not in (1, 2, 4) or 0 in shape:
        wanted = "data of shape (n,), (n, columns) or (n, height, width, channels), n >= 1"
        cure = "Reshape it: grey images by data[..., None], draws of several chains by one axis for all draws."
        raise ValueError(expected(wanted, f"shape {shape}", cure))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"column {index}" for index in range(count))


def _from_columns(columns: Sequence[tuple[str, np.ndarray]]) -> Table:
    """Columns of shape (n, ...); one with trailing dimensions is several: name[0], name[1], ..."""
    if not columns:
        raise ValueError(expected("a table with columns", "one without", "Pass at least one column."))
    for name, column in columns:
        if column.ndim < 1:
            raise ValueError(expected(f"column {name!r} of shape (n, ...)", "one number", "Pass one for each row."))
    counts = {name: len(column) for name, column in columns}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(expected("columns with as many rows, at least one", counts, "The first axis counts rows."))
    values, names = [], []
    for name, column in columns:
        flat = numbers_of(f"column {name!r}", column).reshape(len(column), -1)
        values.append(flat)
        indices = np.ndindex(column.shape[1:])
        names += [name if not index else f"{name}[{','.join(map(str, index))}]" for index in indices]
    return Table(np.concatenate(values, axis=1), _different(tuple(names)))


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(expected("columns of different names", f"{twice!r} twice", "Rename one of them."))
    return names
