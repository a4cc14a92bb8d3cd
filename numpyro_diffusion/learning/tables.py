"""Any data to an array of floating-point rows with column names. Nothing is imported for what is not there.

Rows are float64: they are taken apart so, that a column of 10^6 +- 1 keeps its digits. Those of a file stay in the file
and are read where they are wanted. An iterator passes once, and all rows are looked at before the first is learned: its
rows are written to a temporary file, which goes with the last reader.
"""

import decimal
import itertools
import numbers
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .._checks import check_not_lazy, expected
from .._typing import Shape
from ..training.disk import ReadRows, RowsOnDisk, from_memory_map

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
    if hasattr(data, "posterior"):
        return _from_columns(_draws(data.posterior))
    if type(data).__name__ in ("InferenceData", "DataTree"):
        raise TypeError(expected("draws with a group 'posterior'", repr(list(data)), "Pass a table of the draws."))
    if hasattr(data, "data_vars"):
        return _from_columns({str(name): np.asarray(array) for name, array in data.data_vars.items()})
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        return _from_columns({str(name): data[name].to_numpy() for name in data.columns})
    if hasattr(data, "to_numpy") and getattr(data, "name", None) is not None and not hasattr(data, "dims"):
        return _from_columns({str(data.name): data.to_numpy()})  # one column of a table
    if isinstance(data, Mapping):
        return _from_columns({str(name): np.asarray(values) for name, values in data.items()})
    if hasattr(data, "dims") and hasattr(data, "coords"):
        return _from_array(np.asarray(data), _coordinate(data))
    if isinstance(data, Iterator):
        rows = _spooled(data, max_rows)
        return _from_file(rows)._replace(told=(f"an iterator of {len(rows)} rows, kept in a temporary file",))
    if isinstance(data, np.memmap) and data.dtype.kind in "biuf":
        rows = from_memory_map(data)
        return _from_file(rows) if isinstance(rows, ReadRows) else _from_array(rows, None)
    if isinstance(data, np.ma.MaskedArray):
        data = np.ma.filled(data.astype(np.float64), np.nan)
    if getattr(getattr(data, "dtype", None), "names", None):  # a structured array
        return _from_columns({name: np.asarray(data[name]) for name in data.dtype.names})
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


def _from_file(rows: ReadRows) -> Table:
    _check_shape(rows.shape)
    return Table(FloatRows(rows), () if rows.ndim == 4 else _numbered(FloatRows(rows).shape[1]))


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
        return Table(_numbers("the images", array), ())
    names = names or _numbered(array.shape[1])
    if array.dtype.kind in "biuf":
        return Table(np.asarray(array, np.float64), names)
    columns = [_numbers(f"column {name!r}", array[:, index]) for index, name in enumerate(names)]
    return Table(np.stack(columns, axis=1), names)


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) not in (1, 2, 4) or 0 in shape:
        wanted = "data of shape (n,), (n, columns) or (n, height, width, channels), n >= 1"
        cure = "Reshape it: grey images by data[..., None], draws of several chains by one axis for all draws."
        raise ValueError(expected(wanted, f"shape {shape}", cure))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"column {index}" for index in range(count))


def _from_columns(columns: dict[str, np.ndarray]) -> Table:
    """Columns of shape (n, ...); one with trailing dimensions is several: name[0], name[1], ..."""
    if not columns:
        raise ValueError(expected("a table with columns", "one without", "Pass at least one column."))
    for name, column in columns.items():
        if column.ndim < 1:
            raise ValueError(expected(f"column {name!r} of shape (n, ...)", "one number", "Pass one for each row."))
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(expected("columns with as many rows, at least one", counts, "The first axis counts rows."))
    values, names = [], []
    for name, column in columns.items():
        flat = _numbers(f"column {name!r}", column).reshape(len(column), -1)
        values.append(flat)
        indices = np.ndindex(column.shape[1:])
        names += [name if not index else f"{name}[{','.join(map(str, index))}]" for index in indices]
    return Table(np.concatenate(values, axis=1), tuple(names))


def _numbers(what: str, values: np.ndarray) -> np.ndarray:
    """In float64; an empty cell of a column of objects is NaN."""
    if values.dtype.kind in "biuf":
        return np.asarray(values, np.float64)
    if values.dtype.kind == "M":
        cure = "Turn it into numbers: days since a first date, or the sine and cosine of the time of the year."
        raise TypeError(expected(f"numbers in {what}", f"dates, dtype {values.dtype}", cure))
    if values.dtype.kind == "m":
        cure = "Turn it into numbers: divide it by numpy.timedelta64(1, 'D') to have days."
        raise TypeError(expected(f"numbers in {what}", f"durations, dtype {values.dtype}", cure))
    found = np.empty(values.shape)
    for index, value in np.ndenumerate(values):
        is_empty = value is None or type(value).__name__ in ("NAType", "NaTType")
        if not is_empty and not isinstance(value, numbers.Real | decimal.Decimal | np.bool_):
            shown = value.item() if isinstance(value, np.generic) else value
            cure = _cure_of(shown)
            raise TypeError(expected(f"numbers in {what}", f"{shown!r} in row {index[0]}", cure))
        found[index] = np.nan if is_empty else float(value)
    return found


def _cure_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return "Make columns of it: pandas.DataFrame(data)."
    try:
        float(value)
    except (TypeError, ValueError):
        return "Leave the column out, or code it by numbers (one column of 0 and 1 for each category)."
    return "These are numbers as text: convert them, for example by pandas.to_numeric."


def _draws(posterior: Any) -> dict[str, np.ndarray]:
    """By name, chains one after the other."""
    columns = {}
    for name, array in posterior.data_vars.items():
        values = np.asarray(array.transpose("chain", "draw", ...))
        columns[str(name)] = values.reshape((-1, *values.shape[2:]))
    return columns


def _coordinate(data: Any) -> tuple[str, ...] | None:
    """The names along the second dimension of an xarray DataArray."""
    if len(data.dims) != 2 or data.dims[1] not in data.coords:
        return None
    return tuple(str(name) for name in np.asarray(data.coords[data.dims[1]]))


def _spooled(data: Iterator[Any], max_rows: int) -> RowsOnDisk:
    """Rows or batches of rows, to the end, in a file that is deleted when it is closed.

    Batches of floating-point numbers, bytes or truth values keep their type; all others become float64.
    """
    first = next(data, None)
    if first is None:
        raise ValueError(expected("an iterator with at least one row", "none", "Pass data."))
    array = _batch(first, 0)
    row_shape, dtype = array.shape[1:], array.dtype
    if dtype.kind != "f" and dtype.itemsize > 1:
        dtype = np.dtype(np.float64)
    file: Any = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with its last reader)
    try:
        count = _write(itertools.chain([array], data), file, row_shape, dtype, max_rows)
    except BaseException:
        file.close()
        raise
    return RowsOnDisk(file, dtype, (count, *row_shape))


def _write(parts: Iterable[Any], file: BinaryIO, row_shape: Shape, dtype: np.dtype, max_rows: int) -> int:
    """How many rows were written."""
    count = 0
    for part in parts:
        batch = _batch(part, count)
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


def _batch(part: Any, row: int) -> np.ndarray:
    """One row, or several, as numbers."""
    array = np.asarray(part)
    array = array if array.ndim in (2, 4) else array[None]
    return array if array.dtype.kind in "biuf" else _numbers(f"the iterator's rows from {row} on", array)
