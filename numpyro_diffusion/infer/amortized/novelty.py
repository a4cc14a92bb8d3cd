"""Whether a data set is like those that were simulated: how far it lies from its nearest neighbours among them.

Codes of y are whitened by one Gaussian of the simulations, and a distance is that to the fifth nearest of those that
are kept. The other simulations have such distances, too, and the share of them that is farther than y is a p-value: if
y came out of the model, it would be uniform. A network knows nothing of what lies beyond.

Not seen: what the codes do not show, and in many coordinates a departure that is small beside the noise of all.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ...evaluation.distances import squared_distances
from ...learning.gaussians import fit_gaussian

__all__ = ["Neighbours", "fit_neighbours"]

_NEIGHBOUR = 5
_MOST = 1000  # simulations that are kept, and as many that say what is far
_MOST_WHITENED = 300  # coordinates; more are taken as they are


class Neighbours(NamedTuple):
    """Simulations to be compared with.

    Attributes:
        unwhiten: L, where a whitened row w has codes m + L w.
        mean: m.
        rows: whitened codes, shape (n, p).
        far: distances of other simulations, sorted.
    """

    unwhiten: np.ndarray
    mean: np.ndarray
    rows: np.ndarray
    far: np.ndarray

    def share_farther(self, codes: np.ndarray) -> np.ndarray:
        """The share of simulations that are farther from the others than data sets, shape (..., p)."""
        flat = codes.reshape((-1, codes.shape[-1]))
        distances = _distance(_whitened(flat, self.unwhiten, self.mean), self.rows)
        # ``far`` is sorted: what is before its first number that is not nearer is nearer.
        shares = 1 - np.searchsorted(self.far, distances, side="left") / len(self.far)
        return shares.reshape(codes.shape[:-1])


def fit_neighbours(codes: np.ndarray, held_out: np.ndarray, rng: np.random.Generator) -> Neighbours:
    """Of codes of simulations, shape (n, p), and of others; half of the first at least are compared with the rest."""
    size = codes.shape[1]
    varies = codes.std(0) > 0
    mean, unwhiten = codes.mean(0), np.eye(size)
    if varies.sum() <= _MOST_WHITENED:
        fitted = fit_gaussian(codes[:, varies].astype(np.float64), np.ones(len(codes)), rng=rng)
        unwhiten[np.ix_(varies, varies)] = fitted.scale_tril
    order = rng.permutation(len(codes))
    split = min(_MOST, (len(codes) + 1) // 2)
    rows = _whitened(codes[order[:split]], unwhiten, mean)
    others = np.concatenate([held_out, codes[order[split:]]])[:_MOST]
    far = np.sort(_distance(_whitened(others, unwhiten, mean), rows))
    return Neighbours(*(np.asarray(part, np.float32) for part in (unwhiten, mean, rows, far)))


def _whitened(codes: np.ndarray, unwhiten: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return np.linalg.solve(unwhiten, (np.asarray(codes, np.float64) - mean).T).T


def _distance(points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """To the fifth nearest of the rows."""
    nearest = min(_NEIGHBOUR, len(rows)) - 1
    squares = np.asarray(squared_distances(*(jnp.asarray(x, jnp.float32) for x in (points, rows))))
    return np.sqrt(np.maximum(np.partition(squares, nearest, axis=1)[:, nearest], 0))
