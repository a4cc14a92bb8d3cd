r"""Monotone transforms of columns to margins that are nearly normal: y = sinh((asinh(w) + skew) / tail).

A column is centred at its median and scaled by its quartiles first, so that heavy tails do not set the scale. Skew and
tail have the largest likelihood, with mean and standard deviation of w at their best for each pair:

    log L(skew, tail) = -log sd(w) + mean of log(dw / dy),      w = sinh(tail asinh(y) - skew)

References: Jones and Pewsey 2009.
"""

from typing import NamedTuple

import numpy as np

from .stretches import thinned

__all__ = ["Margins", "fit_margins", "is_far_from_normal"]

# Of standard errors, from which on skewness and kurtosis are no chance: sqrt(6 / n) and sqrt(24 / n) for normal data.
_SIGNIFICANT = 5.0
_MOST_ROWS = 5000  # to fit two numbers to


class Margins(NamedTuple):
    """Of every column; skew 0 and tail 1 leave one as it is.

    Attributes:
        loc: shape (d,).
        scale: shape (d,).
        skew: shape (d,).
        tail: shape (d,).
    """

    loc: np.ndarray
    scale: np.ndarray
    skew: np.ndarray
    tail: np.ndarray


def is_far_from_normal(skewness: float, kurtosis: float, num_rows: int) -> bool:
    """Whether skewness or excess kurtosis are more than chance."""
    large = abs(skewness) > _SIGNIFICANT * np.sqrt(6 / num_rows)
    return bool(large or abs(kurtosis) > _SIGNIFICANT * np.sqrt(24 / num_rows))


def fit_margins(x: np.ndarray, chosen: np.ndarray) -> Margins:
    """Skew and tail of the chosen columns.

    Args:
        x: shape (n, d).
        chosen: which columns are to be transformed, shape (d,).
    """
    quartiles = np.quantile(x, (0.25, 0.5, 0.75), axis=0)
    spread = (quartiles[2] - quartiles[0]) / 1.349  # of a normal's standard deviation
    loc = np.where(chosen, quartiles[1], x.mean(0))
    scale = np.where(chosen & (spread > 0), spread, x.std(0))
    some = thinned(x, _MOST_ROWS)
    skew, tail = np.zeros(x.shape[1]), np.ones(x.shape[1])
    for index in np.flatnonzero(chosen):
        skew[index], tail[index] = _best_pair((some[:, index] - loc[index]) / scale[index])
    return Margins(loc, scale, skew, tail)


def _best_pair(y: np.ndarray) -> tuple[float, float]:
    """By a grid that is made finer three times."""
    skew, log_tail, skew_width, tail_width = 0.0, -0.5, 2.0, 1.2
    angle = np.arcsinh(y)[:, None]
    for _ in range(4):
        pairs = [
            (skew + skew_width * a, log_tail + tail_width * b)
            for a in np.linspace(-1, 1, 13)
            for b in np.linspace(-1, 1, 13)
        ]
        skews, log_tails = np.asarray(pairs).T
        bent = np.exp(log_tails) * angle - skews
        # log(dw / dy) without the term that no pair changes.
        slopes = np.logaddexp(bent, -bent) - np.log(2) + log_tails
        scores = slopes.mean(0) - np.log(np.sinh(bent).std(0))
        skew, log_tail = pairs[int(np.argmax(scores))]
        skew_width, tail_width = skew_width / 4, tail_width / 4
    return float(skew), float(np.exp(log_tail))
