r"""One Gaussian of a table, with as much shrinkage as held-out rows ask for.

With standard deviations S and the correlation matrix R of the rows,

    C(a) = S ((1 - a) R + a I) S,       a of a grid from 0 to 1

and a has the largest log likelihood of rows that were left out, five parts in turn. With many rows a is 0 and C is the
sample covariance; with fewer rows than columns R is singular, and a is not 0.

References: Ledoit and Wolf 2004 (shrinkage); Friedman 1989 (its choice by held-out rows).
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Gaussian", "dependent", "fit_gaussian", "log_normal"]

_GRID = (0.0, *np.geomspace(1e-6, 0.9, 25).tolist(), 1.0)
_FOLDS = 5
# Of a column's standard deviation: what columns before it leave unexplained, below which float32 has no digits for it.
_LEAST_LEFT = 3e-4
_LOG_2PI = float(np.log(2 * np.pi))


class Gaussian(NamedTuple):
    """A Gaussian and what is known of its fit.

    Attributes:
        mean: shape (d,).
        scale_tril: lower Cholesky factor of the covariance, shape (d, d).
        shrinkage: a.
        held_out: mean log likelihood of rows that were left out, nats.
    """

    mean: np.ndarray
    scale_tril: np.ndarray
    shrinkage: float
    held_out: float

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Shape (n,), nats."""
        return log_normal(x, self.mean, self.scale_tril)


def log_normal(x: np.ndarray, mean: np.ndarray, scale_tril: np.ndarray) -> np.ndarray:
    """Log N(x; mean, L L^T) for rows, shape (n,)."""
    whitened = np.linalg.solve(scale_tril, (x - mean).T)
    log_det = np.log(np.diagonal(scale_tril)).sum()
    return -0.5 * (whitened**2).sum(0) - log_det - 0.5 * len(mean) * _LOG_2PI


def fit_gaussian(x: np.ndarray, weights: np.ndarray, *, rng: np.random.Generator) -> Gaussian:
    """The Gaussian with the best shrinkage.

    Args:
        x: shape (n, d), no column constant.
        weights: of the rows, >= 0, shape (n,).
        rng: which rows are left out together.
    """
    mean, scale, correlation = _moments(x, weights)
    part = rng.permutation(np.arange(len(x)) % min(_FOLDS, len(x)))
    scores = np.zeros(len(_GRID))
    for index in range(part.max() + 1):
        kept, out = part != index, part == index
        if weights[kept].sum() > 0 and kept.sum() > 1:
            moments = _moments(x[kept], weights[kept])
            for which, shrinkage in enumerate(_GRID):
                scores[which] += weights[out] @ _scored(x[out], *moments, shrinkage)
    scores /= weights.sum()
    best = int(np.argmax(scores))
    # A correlation matrix may be singular although no part of it was.
    while (scale_tril := _factor(scale, correlation, _GRID[best])) is None:
        best += 1
    return Gaussian(mean, scale_tril, _GRID[best], float(scores[best]))


def dependent(x: np.ndarray) -> np.ndarray:
    """Which columns are linear functions of columns before them, to three digits and a half.

    Args:
        x: shape (n, d), n > d, no column constant.
    """
    standard = (x - x.mean(0)) / x.std(0)
    left = np.abs(np.diagonal(np.linalg.qr(standard, mode="r"))) / np.sqrt(len(x))
    return np.flatnonzero(left < _LEAST_LEFT)


def _moments(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviations, correlation matrix."""
    share = weights / weights.sum()
    mean = share @ x
    centred = x - mean
    scale = np.sqrt(share @ centred**2)
    scale = np.where(scale > 0, scale, 1e-3 * x.std() + 1e-12)  # constant in the rows that are kept
    standard = centred / scale
    correlation = (standard * share[:, None]).T @ standard
    np.fill_diagonal(correlation, 1.0)
    return mean, scale, correlation


def _factor(scale: np.ndarray, correlation: np.ndarray, shrinkage: float) -> np.ndarray | None:
    """The Cholesky factor of C(a); None where that is singular in float32, in which it will be used."""
    shrunk = (1 - shrinkage) * correlation + shrinkage * np.eye(len(scale))
    try:
        factor = np.linalg.cholesky(shrunk)
    except np.linalg.LinAlgError:
        return None
    return None if np.diagonal(factor).min() < _LEAST_LEFT else scale[:, None] * factor


def _scored(
    x: np.ndarray, mean: np.ndarray, scale: np.ndarray, correlation: np.ndarray, shrinkage: float
) -> np.ndarray:
    factor = _factor(scale, correlation, shrinkage)
    # Not -inf, of which weights of 0 would make NaN.
    return np.full(len(x), -1e30) if factor is None else log_normal(x, mean, factor)
