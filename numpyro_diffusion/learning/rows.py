r"""Which rows train, which stop the training and which score the result; weights; noise on grids."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._checks import expected
from .._weights import systematic
from .columns import Column

__all__ = ["dequantise", "resample", "split_rows", "weights_of"]


def weights_of(weights: Any, num_rows: int) -> np.ndarray:
    """Weights that average to 1, shape (n,); equal ones for None.

    Raises:
        ValueError: for another shape, for weights that are negative, not finite or all zero.
    """
    if weights is None:
        return np.ones(num_rows)
    found = np.asarray(weights.to_numpy() if hasattr(weights, "to_numpy") else weights, np.float64)
    if found.shape != (num_rows,):
        cure = "Pass one weight for each row, draws chain by chain."
        raise ValueError(expected(f"weights of shape ({num_rows},)", f"shape {found.shape}", cure))
    bad = ~(np.isfinite(found) & (found >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        cure = "Weights are in proportion to how often a row is to count."
        raise ValueError(expected("weights >= 0", f"{found[row]} in row {row} ({int(bad.sum())} of {len(bad)})", cure))
    if not found.sum() > 0:
        raise ValueError(expected("a weight > 0", "weights that are all zero", "Pass none for equal weights."))
    return found * (num_rows / found.sum())


def split_rows(
    values: np.ndarray, validation: float, test: float, *, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], int]:
    """Indices of rows by their use, at random; equal rows stay together, so that none is scored that was learned.

    Args:
        values: shape (n, ...).
        validation: share of the rows.
        test: share of the rows.
        rng: of the order.

    Returns:
        Indices under ``"train"``, ``"validation"`` and ``"test"``; how many rows repeat another.
    """
    _, groups = np.unique(values.reshape(len(values), -1), axis=0, return_inverse=True)
    groups = groups.reshape(-1)
    rank = rng.permutation(groups.max() + 1)[groups]
    order = np.argsort(rank, kind="stable")
    count = len(order)
    sizes = [max(1, round(share * count)) if share > 0 else 0 for share in (test, validation)]
    ends = [_end_of_group(rank[order], size) for size in (sizes[0], sum(sizes))]
    parts = np.split(order, ends)
    repeats = count - int(groups.max()) - 1
    return {"train": np.sort(parts[2]), "validation": np.sort(parts[1]), "test": np.sort(parts[0])}, repeats


def _end_of_group(ranks: np.ndarray, size: int) -> int:
    while 0 < size < len(ranks) and ranks[size] == ranks[size - 1]:
        size += 1
    return size


def resample(rows: np.ndarray, weights: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """As many indices, each as often as its weight says, up to one (systematic resampling); all once where equal."""
    if np.ptp(weights) == 0:
        return rows
    with np.errstate(divide="ignore"):  # the log of zero is wanted
        return rows[systematic(rng, np.log(weights))]


def dequantise(values: np.ndarray, columns: Sequence[Column], *, rng: np.random.Generator) -> np.ndarray:
    """Columns on a grid with uniform noise as wide as a step, centred at the values."""
    steps = np.asarray([column.step for column in columns])
    return values + steps * rng.uniform(-0.5, 0.5, values.shape) if steps.any() else values
