"""Rows that are read where they are wanted and not kept, so that data may be larger than memory.

A memory map would do, but for one thing: pages of the file that were once touched are counted as memory of the process
until the map is closed. Here rows are read from the file, and nothing is left of them.
"""

import abc
import mmap
import pathlib
import weakref
from typing import Any, BinaryIO

import numpy as np

from .._checks import expected
from .._typing import Shape

__all__ = ["ReadRows", "RowsOnDisk", "from_memory_map"]


class ReadRows(abc.ABC):
    """An array of rows that are read, or computed, at each access.

    Attributes:
        shape: (n, row...).
        dtype: of what an access returns.
    """

    shape: Shape
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by number, slice or array of indices."""
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        found = self.read(np.where(rows < 0, rows + len(self), rows).reshape(-1))
        return found.reshape(rows.shape + self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    @abc.abstractmethod
    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows by index, shape (k,), each in 0..n-1, as (k, row...)."""


class RowsOnDisk(ReadRows):
    """Rows of a file that holds one array in row order.

    Args:
        file: open for reading, without a buffer.
        dtype: of the numbers.
        shape: (n, row...).
        offset: bytes before the first row.
    """

    def __init__(self, file: BinaryIO, dtype: Any, shape: Shape, offset: int = 0) -> None:
        self._file, self._offset = file, offset
        self.dtype, self.shape = np.dtype(dtype), shape
        self._row_bytes = self.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        weakref.finalize(self, file.close)  # not __del__: of a cycle, Python may end the file first, with a warning

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows by index.

        Raises:
            IndexError: for a row that is not there.
            OSError: for a file that has become shorter.
        """
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        first, last = int(rows.min()), int(rows.max())
        if not 0 <= first <= last < len(self):
            raise IndexError(expected(f"rows in 0..{len(self) - 1}", (first, last), "Count from 0."))
        if last - first < 2 * len(rows):  # one stretch, in which hardly any row is not wanted
            return self._stretch(first, last - first + 1)[rows - first]
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for place, row in enumerate(rows.tolist()):
            found[place] = self._stretch(row, 1)[0]
        return found

    def _stretch(self, first: int, count: int) -> np.ndarray:
        found = np.empty((count, *self.shape[1:]), self.dtype)
        into: Any = memoryview(found.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        self._file.seek(self._offset + first * self._row_bytes)
        done = 0
        while done < len(into):
            size = self._file.readinto(into[done:])  # type: ignore[attr-defined]
            if not size:
                raise OSError(
                    expected(
                        f"a file with {len(self)} rows",
                        f"its end at row {first + done // max(self._row_bytes, 1)}",
                        "It has become shorter since it was opened: keep data as they are while they are in use.",
                    )
                )
            done += size
        return found


def from_memory_map(array: np.memmap) -> Any:
    """The rows of a memory map's file; the map itself where it is a part of one, not in row order, or not read-only."""
    is_whole = isinstance(array.base, mmap.mmap) and array.flags.c_contiguous and array.ndim > 0
    if not is_whole or array.mode != "r" or array.filename is None:
        return array
    try:
        file: Any = pathlib.Path(array.filename).open("rb", buffering=0)  # noqa: SIM115 (closed with its last reader)
        rows = RowsOnDisk(file, array.dtype, array.shape, array.offset)
        is_same = all(rows[[end]].tobytes() == array[[end]].tobytes() for end in (0, len(array) - 1))
    except OSError:
        return array
    return rows if is_same else array  # another file may have taken the name of one that is still mapped
