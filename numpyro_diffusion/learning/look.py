"""From what a user has to rows that were looked at, and to the space in which a chain learns them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._checks import expected
from ..kernels import Kernel
from ..training.disk import ReadRows
from .columns import Column, check_finite_rows, check_support, look, look_at_pieces, supports_of
from .coordinates import Coordinates, MarginChoice, fit_coordinates
from .gaussians import dependent
from .plan import Plan, for_bits, for_images, for_table
from .rows import noise_of, weights_of
from .stretches import pieces, stretches, thinned
from .tables import MOST_ROWS, FloatRows, read_table

__all__ = ["Data", "Space", "look_at", "space_for"]

_FEWEST_ROWS = 10
_TABLE_STEPS, _IMAGE_STEPS = 50, 100  # of the chain
_MOST_FOR_DEPENDENCE = 5000  # rows in which a linear dependence is looked for
_CHANNELS = (1, 3, 4)  # grey, colours, colours and transparency


class Data(NamedTuple):
    """Rows after a look at all of them; ``values`` may be a reader of a file."""

    values: Any
    names: tuple[str, ...]
    weights: np.ndarray
    columns: tuple[Column, ...]
    did: list[str]
    warnings: list[str]


class Space(NamedTuple):
    """Rows in the kernel's units, and the way back.

    Attributes:
        plan: the kernel and the network.
        transforms: from the kernel's units to the data's.
        values: as in :class:`Data`.
        steps: of the grid in every column, that broadcast with a row.
        key: of the noise on grids.
        coordinates: of a table.
        scaling: shift and scale of images; 0 and 1 for bits.
    """

    plan: Plan
    transforms: tuple[Any, ...]
    values: Any
    steps: np.ndarray
    key: jax.Array
    coordinates: Coordinates | None
    scaling: tuple[float, float] = (0.0, 1.0)

    def noisy(self, rows: np.ndarray) -> np.ndarray:
        """Rows by index, in the data's units, with noise on grids."""
        return _with_noise(self.values, rows, self.steps, self.key)

    def z(self, rows: np.ndarray) -> np.ndarray:
        """Rows by index, in the kernel's units, float64."""
        return _z(self.noisy(rows), self.coordinates, self.scaling)

    def to_train(self, rows: np.ndarray) -> Any:
        """Rows by index in the kernel's units and of its type: an array, or where data are in a file a reader."""
        dtype = np.dtype(np.int32 if self.plan.kernel.is_discrete else jnp.result_type(float))
        if isinstance(self.values, ReadRows):
            return _TrainingRows(self, rows, dtype)
        return self.z(rows).astype(dtype)


class _TrainingRows(ReadRows):
    """Rows of a file in the kernel's units."""

    def __init__(self, space: Space, rows: np.ndarray, dtype: np.dtype) -> None:
        self._space, self._rows, self.dtype = space, rows, dtype
        self.shape = (len(rows), *space.z(rows[:1]).shape[1:])

    def read(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for some in pieces(np.arange(len(rows)), self._space.values.shape):
            found[some] = self._space.z(self._rows[rows[some]])
        return found


def _with_noise(values: Any, rows: np.ndarray, steps: np.ndarray, key: jax.Array) -> np.ndarray:
    found = np.asarray(values[rows], np.float64)
    return found + steps * noise_of(key, rows, found.shape[1:]) if steps.any() else found


def _z(noisy: np.ndarray, coordinates: Coordinates | None, scaling: tuple[float, float]) -> np.ndarray:
    if coordinates is not None:
        return coordinates.whiten(noisy)
    loc, scale = scaling
    return (noisy - loc) / scale


def look_at(
    data: Any,
    weights: Any,
    support: str | Mapping[str, str],
    missing: str,
    names: Sequence[str] | None,
    max_rows: int = MOST_ROWS,
) -> Data:
    """All rows, checked."""
    values, found_names, did_read = read_table(data, max_rows)
    did: list[str] = list(did_read)
    told: list[str] = []
    if names is not None:
        found_names = _given_names(names, found_names)
    row_weights = weights_of(weights, len(values))
    keep = _kept(values, row_weights, missing, did)
    places = None
    if not keep.all():
        values = values.only(keep) if isinstance(values, FloatRows) else values[keep]
        row_weights, places = row_weights[keep], np.flatnonzero(keep)
    check_finite_rows(values, found_names, places)
    if weights is not None:
        row_weights = weights_of(row_weights, len(values))
        effective = row_weights.sum() ** 2 / (row_weights**2).sum()
        did.append(f"weights: {len(values)} rows count as {effective:.0f}")
        if effective < 0.1 * len(values):
            told.append(f"a few rows have most of the weight: they count as {effective:.0f} of {len(values)}")
    if len(values) < _FEWEST_ROWS:
        raise ValueError(expected(f"at least {_FEWEST_ROWS} rows", len(values), "Fewer have no distribution to learn."))
    if values.ndim == 4:
        if support != "real":
            raise ValueError(expected("support='real' for images", repr(support), "Scale images yourself."))
        return Data(values, (), row_weights, _look_at_pixels(values, did, told), did, told)
    supports = supports_of(support, found_names)
    check_support(values, found_names, supports, places)
    columns = look(values, found_names, supports)
    _check_representable(columns)
    if len(values) < values.shape[1]:
        told.append(f"fewer rows ({len(values)}) than columns ({values.shape[1]}): correlations are mostly chance")
    told += [
        f"column {column.name!r} varies by less than a millionth of its mean: subtract the mean"
        for column in columns
        if 0 < column.scale * 2**20 < abs(column.mean)  # float32 has 24 bits
    ]
    return Data(values, found_names, row_weights, columns, did, told)


def _given_names(names: Sequence[str], found: tuple[str, ...]) -> tuple[str, ...]:
    if not found:
        raise ValueError(expected("no names of columns for images", names, "Leave names out."))
    if isinstance(names, str) or len(names) != len(found):
        got = names if isinstance(names, str) else list(names)
        raise ValueError(expected(f"names of {len(found)} columns", got, "Name each column."))
    if len(set(map(str, names))) < len(names):
        raise ValueError(expected("names that differ", list(names), "Name each column."))
    return tuple(map(str, names))


def _kept(values: Any, weights: np.ndarray, missing: str, did: list[str]) -> np.ndarray:
    """Which rows have a part in anything: those with weight, and where ``missing`` is "drop" without gaps."""
    keep = weights > 0
    if not keep.all():
        did.append(f"left out {int((~keep).sum())} of {len(keep)} rows of weight 0")
    if missing == "drop":
        is_whole = np.concatenate([np.isfinite(x.reshape(len(x), -1)).all(1) for _, x in stretches(values)])
        gaps = int((keep & ~is_whole).sum())
        if 0 < gaps < keep.sum():  # else there is nothing to leave out, or nothing would be left
            did.append(f"left out {gaps} of {len(keep)} rows with NaN or infinite values")
            keep = keep & is_whole
    return keep


def _check_representable(columns: Sequence[Column]) -> None:
    """Draws are floats of JAX, whatever the data are."""
    info = jnp.finfo(jnp.result_type(float))
    for column in columns:
        size = abs(column.mean) + 10 * column.scale
        is_small = 0 < column.scale < 100 * float(info.tiny)
        if is_small or not size < float(info.max) / 100:
            got = f"a mean of {column.mean:.3g} and a standard deviation of {column.scale:.3g}"
            cure = f"Take other units: draws are {info.dtype}."
            raise ValueError(expected(f"numbers of an ordinary size in column {column.name!r}", got, cure))


def _look_at_pixels(values: Any, did: list[str], told: list[str]) -> tuple[Column, ...]:
    """All pixels as one column."""
    (pixels,) = look_at_pieces(lambda: (x.reshape(-1, 1) for _, x in stretches(values)), ("pixels",), ("real",))
    _check_representable([pixels])
    low, high = np.full(values.shape[1:], np.inf), np.full(values.shape[1:], -np.inf)
    for _, images in stretches(values):
        low, high = np.minimum(low, images.min(0)), np.maximum(high, images.max(0))
    constant = int((low == high).sum())
    if constant and pixels.kind != "constant":
        words = f"{constant} of {low.size} pixels are the same in all images"
        if pixels.step:
            did.append(f"{words}: draws, rounded, have them nearly always")
        else:
            told.append(f"{words}, where no density exists: nats are arbitrary there; add noise, or crop")
    height, channels = values.shape[1], values.shape[3]
    if height in _CHANNELS and channels not in _CHANNELS:
        told.append(f"images of height {height} with {channels} channels: if the channels come first, move them last")
    return (pixels,)


def space_for(
    found: Data,
    fitted: np.ndarray,
    trained: Sequence[np.ndarray],
    kernel: Kernel | None,
    network: Any,
    margins: MarginChoice,
    rng: np.random.Generator,
    key: jax.Array,
) -> Space:
    """Coordinates to learn in, and the chain.

    Args:
        found: the data.
        fitted: indices of the rows that coordinates are fitted to.
        trained: indices of all rows that the schedule must reach, in parts.
        kernel: of the chain; None to choose one.
        network: for it; None to choose one.
        margins: as for :func:`~.coordinates.fit_coordinates`.
        rng: of the rows that are left out together.
        key: of the noise on grids.
    """
    values, columns = found.values, found.columns
    varying = [column for column in columns if column.kind != "constant"]
    if not varying:
        raise ValueError(expected("values that vary", "constant columns only", "There is nothing to learn."))
    is_binary = all(c.kind == "binary" or (c.kind == "constant" and c.mean in (0, 1)) for c in columns)
    if kernel.is_discrete if kernel is not None else is_binary:
        found.did.append("binary: a Bernoulli kernel" if kernel is None else "learned as they are: a discrete kernel")
        if kernel is not None:
            for start, rows in stretches(values):  # before they are cast to integers
                kernel.check_data(f"data from row {start} on" if start else "data", rows)
        ones = sum(values[some].sum(0) for rows in trained for some in pieces(rows, values.shape))
        plan = for_bits(ones, sum(map(len, trained)), kernel, network, _TABLE_STEPS)
        return Space(plan, (), values, np.zeros(1), key, None)
    steps = np.asarray([column.step for column in columns])
    words = _grid_words(columns)
    if words:
        found.did.append(words)
    noisy = _with_noise(values, fitted, steps, key)
    coordinates, scaling = None, (0.0, 1.0)
    transforms: tuple[Any, ...]
    if values.ndim == 4:
        found.did.append("pixels: one shift and one scale for all")
        scaling = (float(noisy.mean()), float(noisy.std()))
        affine = dist.transforms.AffineTransform(*map(jnp.asarray, scaling), domain=constraints.real)
        transforms = (affine,)
    else:
        _check_varies(noisy, columns)
        _tell_dependent(noisy, columns, found.warnings)
        coordinates = fit_coordinates(noisy, found.weights[fitted], columns, margins=margins, rng=rng)
        found.did.extend(_coordinate_words(coordinates, varying))
        transforms = coordinates.transforms
    z = _z(noisy, coordinates, scaling)
    farthest = max(
        float(np.abs(_z(_with_noise(values, some, steps, key), coordinates, scaling)).max())
        for rows in trained
        for some in pieces(rows, values.shape)
    )
    make = for_images if values.ndim == 4 else for_table
    plan = make(z, farthest, kernel, network, _IMAGE_STEPS if values.ndim == 4 else _TABLE_STEPS)
    return Space(plan, transforms, values, steps, key, coordinates, scaling)


def _check_varies(noisy: np.ndarray, columns: Sequence[Column]) -> None:
    """Few values that differ may all be in the rows that are kept for the test."""
    for column, width in zip(columns, np.ptp(noisy, axis=0), strict=True):
        if column.kind != "constant" and not width > 0:
            wanted = f"column {column.name!r} to vary in the rows that are learned"
            cure = "Leave it out: it hardly ever varies."
            raise ValueError(expected(wanted, f"{noisy[0, columns.index(column)]:g} in all of them", cure))


def _tell_dependent(noisy: np.ndarray, columns: Sequence[Column], told: list[str]) -> None:
    """Columns that others determine: all densities are then arbitrary."""
    names = [column.name for column in columns if column.kind != "constant"]
    rows = noisy[:, [column.kind != "constant" for column in columns]]
    rows = thinned(rows, max(_MOST_FOR_DEPENDENCE, 4 * rows.shape[1]))
    # Few rows are told before; of a simplex one column is left out; of rows that are rare all may have been thinned.
    if len(rows) <= rows.shape[1] or columns[0].support == "simplex" or not np.ptp(rows, axis=0).all():
        return
    told += [
        f"column {names[index]!r} is a linear function of columns before it: leave it out, or nats are arbitrary"
        for index in dependent(rows)
    ]


def _grid_words(columns: Sequence[Column]) -> str:
    grids = [column for column in columns if column.step > 0]
    if not grids:
        return ""
    listed = ", ".join(f"{column.name!r} ({column.step:g})" for column in grids[:20])
    more = f" and {len(grids) - 20} more" if len(grids) > 20 else ""
    return f"on a grid, uniform noise as wide as a step: {listed}{more}; round draws to have the grid again"


def _coordinate_words(coordinates: Coordinates, columns: Sequence[Column]) -> list[str]:
    scales = [column.scale for column in columns]
    words = [f"whitened: standard deviations from {min(scales):.3g} to {max(scales):.3g}"]
    if coordinates.gaussian.shrinkage:
        words.append(f"correlations shrunk by {coordinates.gaussian.shrinkage:.2g}, as held-out rows ask for")
    if coordinates.is_bent:
        skew, tail = coordinates.margins.skew, coordinates.margins.tail
        bent = [c.name for c, a, b in zip(columns, skew, tail, strict=True) if (a, b) != (0, 1)]
        words.append(f"to nearly normal margins: {', '.join(map(repr, bent[:20]))}{' ...' if len(bent) > 20 else ''}")
    return words
