r"""Where batches come from: arrays on the device, arrays on disk, or an iterator of batches.

The rows of step i are drawn with replacement by a key that depends on i alone, so that the order of the data needs no
state, and a run that is resumed at step i goes on as if it had never stopped. A batch as large as the data is the data,
in order. Arrays in memory live on the device, and rows are gathered there. Rows of a memory-mapped array are read by
the host, the same rows, a stretch of steps at a time. An iterator keeps its own order.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import expected
from .._placement import Placement
from .._typing import Array, PyTree
from .arrays import as_arrays
from .disk import ReadRows

__all__ = ["Source", "as_source", "check_rows", "describe_not_finite", "is_stream", "rows_not_finite"]

_STRETCH_BYTES = 2**26  # of batches that the host prepares at a time
_LOOK_BYTES = 2**21  # of rows that it looks through at a time: a row that is computed takes many times its size

_MOST_SHOWN = 5  # columns in a message


@runtime_checkable
class Source(Protocol):
    """Batches of rows.

    Attributes:
        size: rows of all the data.
        limit: how many steps can be prepared at a time; None for any number.
    """

    size: int

    @property
    def limit(self) -> int | None: ...

    def example(self) -> PyTree:
        """The first ``batch_size`` rows, or the first batch: to initialise with. Takes nothing away."""

    def prepare(self, start: int, count: int, key: Array) -> PyTree:
        """What the device needs for steps start..start + count - 1."""

    def batch(self, prepared: PyTree, offset: Array, key: Array) -> PyTree:
        """The batch of one step, traced: ``offset`` counts from ``start``, ``key`` is the step's."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on with the same data, for JSON."""

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Go on at a step."""

    def signature(self) -> dict[str, Any]:
        """What the data look like, to notice other data, for JSON."""


def as_source(data: Any, batch_size: int, size: int | None, place: Placement) -> Source:
    """The source for what a user passed.

    Raises:
        ValueError: for no rows, rows that do not match, a batch larger than the data, an iterator without ``size``, or
            arrays with one.
        TypeError: for a path.
    """
    if isinstance(data, str | bytes | os.PathLike):
        raise TypeError(expected("arrays", f"the path {data!r}", "Pass numpy.load(path, mmap_mode='r')."))
    if is_stream(data):
        if size is None:
            raise ValueError(
                expected("size=, the rows of all the data, for an iterator", "None", "The model's plate needs it.")
            )
        return _Stream(data, batch_size, size, place)
    rows = check_rows("data", data)
    if size is not None and size != rows:
        raise ValueError(expected(f"size={rows}, the rows of data, or none", size, "Only iterators need it."))
    if batch_size > rows:
        raise ValueError(expected(f"batch_size <= {rows}, the rows of data", batch_size, "Lower it."))
    on_disk = any(isinstance(leaf, np.memmap | ReadRows) for leaf in jax.tree.leaves(data))
    return (_OnDisk if on_disk else _OnDevice)(data, batch_size, rows, place)


def check_rows(name: str, data: PyTree) -> int:
    """The number of rows of a pytree of arrays.

    Raises:
        ValueError: for no rows, or rows that do not match.
    """
    shapes = {np.shape(leaf) for leaf in jax.tree.leaves(data)}
    if not shapes or any(len(shape) == 0 or 0 in shape for shape in shapes):
        raise ValueError(
            expected(f"{name} with at least one row", sorted(shapes), "Pass an array of rows, or a pytree.")
        )
    sizes = {shape[0] for shape in shapes}
    if len(sizes) > 1:
        raise ValueError(expected(f"{name} with equal first dimensions", sorted(shapes), "The first axis counts rows."))
    return sizes.pop()


def rows_not_finite(data: PyTree) -> np.ndarray:
    """The indices of all rows with NaN or infinite values. Arrays are read in chunks."""
    leaves = jax.tree.leaves(data)
    first_rows = [np.asarray(leaf[:1]) for leaf in leaves]
    floating = [leaf for leaf, row in zip(leaves, first_rows, strict=True) if jnp.issubdtype(row.dtype, jnp.floating)]
    step = max(1, _LOOK_BYTES // max(1, sum(row.nbytes for row in first_rows)))
    found = [np.zeros(0, int)]
    for start in range(0, len(leaves[0]), step):
        for leaf in floating:
            bad = ~np.isfinite(np.asarray(leaf[start : start + step]))
            found.append(start + np.flatnonzero(bad.reshape(len(bad), -1).any(1)))
    return np.unique(np.concatenate(found))


def describe_not_finite(data: PyTree, row: int, columns: Mapping[str, list[str]]) -> str:
    """The values of a row that are NaN or infinite, in words: those of the first array that has some.

    Args:
        data: arrays.
        row: which.
        columns: names by path of the array, where it has some.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        values = np.asarray(leaf[row])
        if not jnp.issubdtype(values.dtype, jnp.floating) or np.isfinite(values).all():
            continue
        where = jax.tree_util.keystr(path)
        bad = np.argwhere(~np.isfinite(values))
        some = [tuple(int(i) for i in index) for index in bad[:_MOST_SHOWN]]
        found = " and ".join(dict.fromkeys(str(values[index]) for index in some))
        place = f"row {row}"
        if values.ndim == 1:
            names = columns.get(where) or range(len(values))
            shown = ", ".join(repr(names[i]) for (i,) in some) + (", ..." if len(bad) > len(some) else "")
            place += f", column{'s' * (len(bad) > 1)} {shown}"
        elif values.ndim:
            place += f", index {some[0]}"
        return f"{found} at {place}{where and f' of {where}'}"
    raise ValueError(expected(f"a value of row {row} that is not finite", "none", "Look at another row."))


class _Arrays:
    """What arrays have in common: rows of a step by its key."""

    def __init__(self, data: PyTree, batch_size: int, size: int, place: Placement) -> None:
        self._data, self._batch_size, self.size, self._place = data, batch_size, size, place

    def example(self) -> PyTree:
        return jax.tree.map(lambda rows: jnp.asarray(rows[: self._batch_size]), self._data)

    def rows(self, key: Array) -> Array:
        """Indices of a step."""
        if self._batch_size == self.size:
            return jnp.arange(self.size)
        return jax.random.randint(key, (self._batch_size,), 0, self.size)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any], step: int) -> None:
        pass

    def signature(self) -> dict[str, Any]:
        picked = np.unique(np.linspace(0, self.size - 1, 64).astype(int))
        leaves = [(np.shape(leaf), np.asarray(leaf[picked])) for leaf in jax.tree.leaves(self._data)]
        return {
            "shapes": [list(shape) for shape, _ in leaves],
            "dtypes": [str(rows.dtype) for _, rows in leaves],
            "checksum_of_64_rows": zlib.crc32(b"".join(rows.tobytes() for _, rows in leaves)),
        }


class _OnDevice(_Arrays):
    limit = None

    def __init__(self, data: PyTree, batch_size: int, size: int, place: Placement) -> None:
        super().__init__(data, batch_size, size, place)
        self._on_device = place.replicate(jax.tree.map(np.asarray if place.mesh else jnp.asarray, data))

    def prepare(self, start: int, count: int, key: Array) -> PyTree:
        return self._on_device

    def batch(self, prepared: PyTree, offset: Array, key: Array) -> PyTree:
        rows = self._place.constrain(self.rows(key))
        return jax.tree.map(lambda array: array[rows], prepared)


class _OnDisk(_Arrays):
    def __init__(self, data: PyTree, batch_size: int, size: int, place: Placement) -> None:
        super().__init__(data, batch_size, size, place)
        self.limit = _stretch(jax.tree.map(lambda leaf: np.asarray(leaf[:1]), data), batch_size)
        self._rows_of = jax.jit(
            lambda key, start: jax.vmap(lambda i: self.rows(jax.random.fold_in(key, start + i)))(jnp.arange(self.limit))
        )

    def prepare(self, start: int, count: int, key: Array) -> PyTree:
        rows = np.array(self._rows_of(key, start))
        rows[count:] = 0  # of steps that are not taken
        return jax.tree.map(lambda leaf: self._place.split_rows(rows.shape, leaf.shape[1:], leaf, rows), self._data)

    def batch(self, prepared: PyTree, offset: Array, key: Array) -> PyTree:
        return _at(prepared, offset)


class _Stream:
    """Batches of an iterator, or of an iterable that starts again at its end."""

    def __init__(self, data: Any, batch_size: int, size: int, place: Placement) -> None:
        self._data, self._batch_size, self.size, self._place = data, batch_size, size, place
        self._iterator: Iterator[Any] = iter(data)
        self._waiting: list[PyTree] = []
        self._rows = 0  # of this epoch
        self._rows_of_first: int | None = None  # of an epoch that has ended
        self.limit = _stretch(jax.tree.map(lambda leaf: leaf[:1], self.example()), batch_size)

    def example(self) -> PyTree:
        if not self._waiting:
            self._waiting.append(self._next())
        return self._waiting[0]

    def prepare(self, start: int, count: int, key: Array) -> PyTree:
        batches = [self._take() for _ in range(count)]
        padded = batches + [batches[-1]] * (self.limit - count)
        return self._place.join_batches(jax.tree.map(lambda *leaves: np.stack(leaves), *padded))

    def batch(self, prepared: PyTree, offset: Array, key: Array) -> PyTree:
        return _at(prepared, offset)

    def state(self) -> dict[str, Any]:
        """Of a grain iterator, its own; any other is fast-forwarded."""
        getter = getattr(self._iterator, "get_state", None)
        if getter is None or self._waiting:
            return {}
        state = getter()
        state = state.decode() if isinstance(state, bytes) else state
        return {"iterator": state, "rows": self._rows, "rows_of_first": self._rows_of_first}

    def restore(self, state: dict[str, Any], step: int) -> None:
        if "iterator" in state and hasattr(self._iterator, "set_state"):
            self._waiting.clear()
            iterator: Any = self._iterator
            is_bytes = isinstance(iterator.get_state(), bytes)
            iterator.set_state(state["iterator"].encode() if is_bytes else state["iterator"])
            self._rows, self._rows_of_first = state["rows"], state["rows_of_first"]
        else:
            for _ in range(step):
                self._take()

    def signature(self) -> dict[str, Any]:
        leaves = jax.tree.leaves(self.example())
        return {"shapes": [list(leaf.shape) for leaf in leaves], "dtypes": [str(leaf.dtype) for leaf in leaves]}

    def _take(self) -> PyTree:
        return self._waiting.pop() if self._waiting else self._next()

    def _next(self) -> PyTree:
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._start_again()
            batch = next(self._iterator, None)
        if batch is None:
            raise ValueError(expected("data with at least one batch", "an iterator without any", "Pass data."))
        batch = jax.tree.map(np.asarray, as_arrays("a batch", batch).tree)
        rows = check_rows("a batch", batch)
        wanted = self._batch_size // self._place.num_processes
        if rows != wanted:
            raise ValueError(
                expected(
                    f"batches of {wanted} rows",
                    f"one of {rows}",
                    "Every process yields its share of batch_size; have the loader drop a last, smaller batch.",
                )
            )
        self._rows += rows * self._place.num_processes
        return batch

    def _start_again(self) -> None:
        if self._iterator is self._data:
            raise ValueError(
                expected(
                    "an iterator that lasts for num_steps batches",
                    f"its end after {self._rows} rows",
                    "Pass a loader that can be iterated again, or an endless iterator.",
                )
            )
        if self._rows_of_first is not None and self._rows != self._rows_of_first:
            raise ValueError(
                expected(
                    f"{self._rows_of_first} rows in every epoch",
                    f"{self._rows}",
                    "The data have changed; the loss would be scaled by the wrong number of rows.",
                )
            )
        if self._rows and not self._rows <= self.size < self._rows + self._batch_size:
            raise ValueError(
                expected(f"size={self._rows}, the rows of an epoch", self.size, "It scales the loss of a batch.")
            )
        self._rows_of_first, self._rows = self._rows or None, 0
        self._iterator = iter(self._data)


def is_stream(data: Any) -> bool:
    """Whether data come as batches and not as arrays of rows."""
    if hasattr(data, "__next__"):
        return True
    return jax.tree_util.all_leaves([data]) and not hasattr(data, "shape") and hasattr(data, "__iter__")


def _stretch(row: PyTree, batch_size: int) -> int:
    """How many steps' batches the host prepares at a time."""
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(row)) * batch_size
    return int(np.clip(_STRETCH_BYTES // max(size, 1), 1, 100))


def _at(prepared: PyTree, offset: Array) -> PyTree:
    pick: Callable = partial(jax.lax.dynamic_index_in_dim, index=offset, axis=0, keepdims=False)
    return jax.tree.map(pick, prepared)
