"""Any data to an array of floating-point rows with column names. Nothing is imported for what is not there.

Rows are held in memory, in float64: they are taken apart there, so that a column of 10^6 +- 1 keeps its digits.
"""

import decimal
import numbers
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._checks import check_not_lazy, expected

__all__ = ["Table", "read_table"]


class Table(NamedTuple):
    """Rows of numbers.

    Attributes:
        values: shape (n, columns), or (n, height, width, channels), float64; NaN where a cell is empty.
        names: of the columns; empty for images.
    """

    values: np.ndarray
    names: tuple[str, ...]


def read_table(data: Any) -> Table:
    """The rows of what a user has.

    Args:
        data: an array or nested lists, shape (n,), (n, columns) or (n, height, width, channels); a table of pandas or
            polars; a mapping of names to columns; an xarray ``DataArray`` or ``Dataset`` whose first dimension counts
            rows; ArviZ draws, of which ``posterior`` is taken, a row for each draw of each chain; the path of a
            ``.npy`` file, or its memory map; an iterator of rows or batches, which is read to its end.

    Raises:
        TypeError: for a column of strings, dates or objects, with its name; for what cannot be read as a table.
        ValueError: for no rows, or rows that do not match.
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
        data = _gather(data)
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


def _as_array(data: Any) -> np.ndarray:
    try:
        return np.asarray(data)
    except ValueError as error:  # of nested lists
        raise ValueError(expected("rows of equal length", str(error), "Pass one row of numbers for each.")) from error


def _from_array(array: np.ndarray, names: tuple[str, ...] | None) -> Table:
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim not in (2, 4) or 0 in array.shape:
        wanted = "data of shape (n,), (n, columns) or (n, height, width, channels), n >= 1"
        raise ValueError(expected(wanted, f"shape {array.shape}", "Reshape it; a grey image has one channel."))
    if array.ndim == 4:
        return Table(_numbers("the images", array), ())
    names = names or tuple(f"column {index}" for index in range(array.shape[1]))
    if array.dtype.kind in "biuf":
        return Table(np.asarray(array, np.float64), names)
    columns = [_numbers(f"column {name!r}", array[:, index]) for index, name in enumerate(names)]
    return Table(np.stack(columns, axis=1), names)


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
    if values.dtype.kind in "mM":
        cure = "Turn it into numbers: days since a first date, or the sine and cosine of the time of the year."
        raise TypeError(expected(f"numbers in {what}", f"dates, dtype {values.dtype}", cure))
    found = np.empty(values.shape)
    for index, value in np.ndenumerate(values):
        is_empty = value is None or type(value).__name__ in ("NAType", "NaTType")
        if not is_empty and not isinstance(value, numbers.Real | decimal.Decimal | np.bool_):
            cure = "Leave the column out, or code it by numbers (one column of 0 and 1 for each category)."
            shown = value.item() if isinstance(value, np.generic) else value
            raise TypeError(expected(f"numbers in {what}", f"{shown!r} in row {index[0]}", cure))
        found[index] = np.nan if is_empty else float(value)
    return found


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


def _gather(data: Iterator[Any]) -> np.ndarray:
    """Rows or batches of rows, to the end."""
    parts = [np.asarray(part) for part in data]
    if not parts:
        raise ValueError(expected("an iterator with at least one row", "none", "Pass data."))
    shapes = {part.shape[1:] if part.ndim in (2, 4) else part.shape for part in parts}
    if len(shapes) > 1:
        raise ValueError(expected("rows of one shape", sorted(shapes), "Yield rows, or batches of rows."))
    return np.concatenate([part if part.ndim in (2, 4) else part[None] for part in parts])
