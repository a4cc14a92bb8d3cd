"""From what a user has to rows that were looked at, and to the space in which a chain learns them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._checks import expected
from ..kernels import Kernel
from .columns import Column, check_finite_rows, check_support, look, supports_of
from .coordinates import Coordinates, MarginChoice, fit_coordinates
from .plan import Plan, for_bits, for_images, for_table
from .rows import dequantise, weights_of
from .tables import read_table

__all__ = ["Data", "Space", "look_at", "space_for"]

_FEWEST_ROWS = 10
_TABLE_STEPS, _IMAGE_STEPS = 50, 100  # of the chain


class Data(NamedTuple):
    """Rows after a look at all of them."""

    values: np.ndarray
    names: tuple[str, ...]
    weights: np.ndarray
    columns: tuple[Column, ...]
    did: list[str]
    warnings: list[str]


class Space(NamedTuple):
    """Rows in the kernel's units, and the way back."""

    plan: Plan
    transforms: tuple[Any, ...]
    rows: np.ndarray  # with noise on grids
    z: np.ndarray
    coordinates: Coordinates | None


def look_at(
    data: Any, weights: Any, support: str | Mapping[str, str], missing: str, names: Sequence[str] | None
) -> Data:
    """All rows, checked."""
    values, found_names = read_table(data)
    did: list[str] = []
    told: list[str] = []
    if names is not None and found_names:
        if len(names) != len(found_names):
            raise ValueError(expected(f"names of {len(found_names)} columns", list(names), "Name each column."))
        found_names = tuple(str(name) for name in names)
    row_weights = weights_of(weights, len(values))
    if missing == "drop":
        keep = np.isfinite(values.reshape(len(values), -1)).all(1)
        if not keep.all() and keep.any():
            did.append(f"left out {int((~keep).sum())} of {len(keep)} rows with NaN or infinite values")
            values, row_weights = values[keep], row_weights[keep]
    check_finite_rows(values, found_names)
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
        return Data(values, (), row_weights, _look_at_pixels(values), did, told)
    supports = supports_of(support, found_names)
    check_support(values, found_names, supports)
    columns = look(values, found_names, supports)
    if len(values) < values.shape[1]:
        told.append(f"fewer rows ({len(values)}) than columns ({values.shape[1]}): correlations are mostly chance")
    told += [
        f"column {column.name!r} varies by less than a millionth of its mean: subtract the mean"
        for column in columns
        if 0 < column.scale * 2**20 < abs(column.mean)  # float32 has 24 bits
    ]
    return Data(values, found_names, row_weights, columns, did, told)


def _look_at_pixels(values: np.ndarray) -> tuple[Column, ...]:
    """All pixels as one column."""
    (column,) = look(values.reshape(-1, 1), ("pixels",), ("real",))
    return (column,)


def space_for(
    found: Data, fitted: np.ndarray, kernel: Kernel | None, network: Any, margins: MarginChoice, rng: Any
) -> Space:
    """Coordinates to learn in, and the chain."""
    values, columns = found.values, found.columns
    if values.ndim == 4:
        pixels = columns[0]
        if pixels.kind == "constant":
            raise ValueError(expected("images that differ", "one value for all pixels", "Pass images."))
        noisy = values + pixels.step * rng.uniform(-0.5, 0.5, values.shape) if pixels.step else values
        found.did.append(_grid_words([pixels]) or "pixels: one shift and one scale for all")
        loc, scale = float(noisy[fitted].mean()), float(noisy[fitted].std())
        z = (noisy - loc) / scale
        affine = dist.transforms.AffineTransform(jnp.asarray(loc), jnp.asarray(scale), domain=constraints.real)
        return Space(for_images(z[fitted], kernel, network, _IMAGE_STEPS), (affine,), noisy, z, None)
    varying = [column for column in columns if column.kind != "constant"]
    if not varying:
        raise ValueError(expected("a column that varies", "constant columns only", "There is nothing to learn."))
    is_binary = all(column.kind == "binary" for column in varying) and np.isin(values, (0, 1)).all()
    if is_binary or (kernel is not None and kernel.is_discrete):
        found.did.append("binary columns: a Bernoulli kernel")
        return Space(for_bits(values[fitted], kernel, network, _TABLE_STEPS), (), values, values, None)
    noisy = dequantise(values, columns, rng=rng)
    words = _grid_words(columns)
    if words:
        found.did.append(words)
    coordinates = fit_coordinates(noisy[fitted], found.weights[fitted], columns, margins=margins, rng=rng)
    z = coordinates.whiten(noisy)
    found.did.extend(_coordinate_words(coordinates, varying))
    plan = for_table(z[fitted], kernel, network, _TABLE_STEPS)
    return Space(plan, coordinates.transforms, noisy, z, coordinates)


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
