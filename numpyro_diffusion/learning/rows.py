r"""Which rows train, which stop the training and which score the result; weights; noise on grids.

A row's place is decided by a random hash of its numbers: equal rows fall into one part, the order of the rows does not
matter, and nothing is sorted but one number for each row. The noise of a row is a function of the key and of its index
alone, so that it is the same whenever and wherever the row is read.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import expected
from .._typing import Array, Shape
from .._weights import systematic
from .stretches import stretches, thinned

__all__ = ["noise_of", "resample", "split_rows", "weights_of"]

# Of one part: more would cost hours, and tell no more.
_MOST_HELD_OUT, _MOST_HELD_OUT_IMAGES = 5000, 1000


def weights_of(weights: Any, num_rows: int) -> np.ndarray:
    """Weights that average to 1, shape (n,); equal ones for None.

    Raises:
        TypeError: for what are no numbers.
        ValueError: for another shape, for weights that are negative, not finite or all zero.
    """
    if weights is None:
        return np.broadcast_to(1.0, num_rows)
    given = np.asarray(weights.to_numpy() if hasattr(weights, "to_numpy") else weights)
    if given.dtype.kind not in "biuf":
        cure = "Pass one number for each row: of a column of the table, data[name]."
        raise TypeError(expected("weights that are numbers", f"{weights!r:.60}", cure))
    found = given.astype(np.float64)
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
    values: Any, validation: float, test: float, *, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], int]:
    """Indices of rows by their use, at random; equal rows stay together, so that none is scored that was learned.

    Args:
        values: shape (n, ...).
        validation: share of the rows; at most 5000 of them, of images 1000.
        test: share of the rows, likewise.
        rng: of the hash.

    Returns:
        Indices under ``"train"``, ``"validation"`` and ``"test"``; how many rows repeat another.
    """
    ranks = _hashes(values, int(rng.integers(2**63)))
    order = np.sort(ranks)
    count, repeats = len(order), int((order[1:] == order[:-1]).sum())
    most = _MOST_HELD_OUT if values.ndim == 2 else _MOST_HELD_OUT_IMAGES
    sizes = [max(1, min(round(share * count), most)) if share > 0 else 0 for share in (test, validation)]
    ends = [order[size - 1] if size else np.uint64(0) for size in (sizes[0], sum(sizes))]
    del order
    is_test = ranks <= ends[0] if sizes[0] else np.zeros(count, bool)
    is_held_out = ranks <= ends[1]
    del ranks
    parts = {"train": ~is_held_out, "validation": is_held_out & ~is_test, "test": is_test}
    found = {name: np.flatnonzero(part) for name, part in parts.items()}
    # A row that repeats a hundred thousand times may have brought all of them along.
    return {name: rows if name == "train" else thinned(rows, 2 * most) for name, rows in found.items()}, repeats


def _hashes(values: Any, seed: int) -> np.ndarray:
    """A number for each row, equal for equal rows, shape (n,): splitmix64 over the bits of the numbers.

    References: Steele, Lea and Flood 2014.
    """
    found = np.empty(len(values), np.uint64)
    for start, rows in stretches(values):
        bits = (rows.reshape(len(rows), -1).astype(np.float64) + 0.0).view(np.uint64)  # -0 is 0
        state = np.full(len(rows), seed, np.uint64)
        for column in bits.T:
            state = state + np.uint64(0x9E3779B97F4A7C15) ^ column
            state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            state = state ^ state >> np.uint64(31)
        found[start : start + len(rows)] = state
    return found


def resample(rows: np.ndarray, weights: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """As many indices, each as often as its weight says, up to one (systematic resampling); all once where equal.

    Args:
        rows: indices.
        weights: of all rows.
        rng: of the resampling.
    """
    if np.ptp(weights) == 0 or np.ptp(weights[rows]) == 0:
        return rows
    with np.errstate(divide="ignore"):  # the log of zero is wanted
        return rows[systematic(rng, np.log(weights[rows]))]


def noise_of(key: jax.Array, rows: np.ndarray, shape: Shape) -> np.ndarray:
    """Uniform numbers in [-1/2, 1/2) for rows by their indices, shape (k, *shape), float64."""
    size = 1 << max(len(rows) - 1, 0).bit_length()  # a power of two, so that few programs are compiled
    padded = np.zeros(size, np.int32)
    padded[: len(rows)] = rows
    return np.asarray(_noise(key, jnp.asarray(padded), shape), np.float64)[: len(rows)]


@functools.partial(jax.jit, static_argnames="shape")
def _noise(key: jax.Array, rows: Array, shape: Shape) -> Array:
    return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), shape, float, -0.5, 0.5))(rows)
