r"""Is a posterior calibrated? Ranks of the truth among posterior draws, and how often credible intervals hold it.

Truths are drawn from the prior, data from the truths, and posterior draws given each data set. If these are right,

    the rank of the truth among m independent draws is uniform on 0..m, and
    a central interval of level l holds the truth in a share l of the data sets,

for every scalar of the unknowns. The converse does not hold: a posterior equal to the prior passes both. Draws of a
chain are not independent: thin them first.

References: Talts et al. 2018 (simulation-based calibration); Cook, Gelman, Rubin 2006.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_finite, check_integer_at_least, expected
from .._typing import ArrayLike

__all__ = ["Coverage", "expected_coverage", "rank_uniformity", "sbc_ranks"]


def sbc_ranks(truth: ArrayLike, draws: ArrayLike, *, rng_key: jax.Array | None = None) -> np.ndarray:
    """How many posterior draws are below the truth, for each data set and each scalar.

    Args:
        truth: shape (data sets, ...).
        draws: shape (data sets, m, ...), m posterior draws given each data set.
        rng_key: JAX random key, which places the truth at random among draws that equal it: for discrete unknowns.

    Returns:
        Integers in 0..m, shape (data sets, ...).

    Raises:
        ValueError: for shapes that do not match, values that are not finite, or ties without a key.

    >>> sbc_ranks(np.array([0.5]), np.array([[0.1, 0.9, 0.2]]))
    array([2])

    References: Talts et al. 2018, Section 4.
    """
    truth, draws = _check_draws(truth, draws)
    below = (draws < truth[:, None]).sum(1)
    ties = (draws == truth[:, None]).sum(1)
    if not ties.any():
        return below
    if rng_key is None:
        raise ValueError(
            expected("draws that differ from the truth", f"{int(ties.sum())} ties", "Pass rng_key=jax.random.key(0).")
        )
    return below + np.asarray(jax.random.randint(rng_key, ties.shape, 0, jnp.asarray(ties) + 1))


def rank_uniformity(ranks: ArrayLike, num_draws: int, *, num_bins: int = 8) -> float:
    """The p-value of a chi-square test that ranks are uniform on 0..num_draws.

    Args:
        ranks: integers in 0..num_draws of one scalar, shape (data sets,).
        num_draws: m, the posterior draws of each data set.
        num_bins: a divisor of m + 1, so that all bins are equally probable.

    Raises:
        ValueError: for ranks outside 0..m, a number of bins that does not divide m + 1, or fewer than five data sets
            for each bin.

    >>> round(rank_uniformity(np.arange(64), 63), 3)
    1.0

    References: Talts et al. 2018, Section 4.1.
    """
    from scipy import stats

    ranks = np.asarray(ranks)
    check_integer_at_least("num_draws", num_draws, 1, "It counts the posterior draws of one data set.")
    check_integer_at_least("num_bins", num_bins, 2, "Uniformity is a comparison of bins.")
    if (num_draws + 1) % num_bins:
        raise ValueError(
            expected(f"num_bins to divide num_draws + 1 = {num_draws + 1}", num_bins, "Unequal bins are not uniform.")
        )
    if ranks.ndim != 1 or len(ranks) < 5 * num_bins:
        raise ValueError(
            expected(
                f"ranks of shape (n,), n >= 5 for each of {num_bins} bins", f"shape {ranks.shape}", "Take fewer bins."
            )
        )
    if not (np.isin(ranks, np.arange(num_draws + 1))).all():
        raise ValueError(expected(f"ranks in 0..{num_draws}", ranks, "Pass what sbc_ranks returns."))
    counts = np.bincount(ranks.astype(int) * num_bins // (num_draws + 1), minlength=num_bins)
    return float(stats.chisquare(counts).pvalue)


class Coverage(NamedTuple):
    """How often central credible intervals hold the truth.

    Attributes:
        levels: shape (levels,).
        coverage: share of the data sets, shape (levels, ...), one number for each scalar.
        standard_errors: of the coverage if the posterior is right, shape (levels,).
    """

    levels: np.ndarray
    coverage: np.ndarray
    standard_errors: np.ndarray


def expected_coverage(
    truth: ArrayLike, draws: ArrayLike, *, levels: ArrayLike | Sequence[float] = (0.5, 0.8, 0.9, 0.95)
) -> Coverage:
    """The share of data sets whose central credible interval holds the truth, for each level and each scalar.

    The ends of an interval are two of the m draws. A right posterior therefore covers a level exactly where
    (1 - level) (m + 1) / 2 is whole. Any other level is rounded to the nearest of these, which ``levels`` of the result
    states.

    Args:
        truth: shape (data sets, ...).
        draws: shape (data sets, m, ...), m posterior draws given each data set.
        levels: wanted levels in (0, 1), shape (levels,).

    Raises:
        ValueError: for shapes that do not match, values that are not finite, levels outside (0, 1), or too few draws
            for a level.

    >>> truth, draws = np.zeros((40, 1)), np.linspace(-1, 1, 20)[None, :, None].repeat(40, 0)
    >>> expected_coverage(truth, draws, levels=[0.8]).coverage
    array([[1.]])

    References: Cook, Gelman, Rubin 2006.
    """
    truth, draws = _check_draws(truth, draws)
    wanted = np.asarray(levels, np.float64)
    if wanted.ndim != 1 or not len(wanted) or not ((wanted > 0) & (wanted < 1)).all():
        raise ValueError(expected("levels in (0, 1), shape (k,)", levels, "Try 0.5, 0.9."))
    num_draws = draws.shape[1]
    tail = np.rint((1 - wanted) * (num_draws + 1) / 2).astype(int)
    if (tail < 1).any() or (2 * tail > num_draws).any():
        raise ValueError(
            expected(
                f"enough draws for levels {wanted.tolist()}",
                f"{num_draws} draws a data set",
                "Take 2 / (1 - level) draws or more.",
            )
        )
    ordered = np.sort(draws, axis=1)
    held = [(ordered[:, k - 1] < truth) & (truth < ordered[:, num_draws - k]) for k in tail]
    reached = 1 - 2 * tail / (num_draws + 1)
    return Coverage(reached, np.stack(held).mean(1), np.sqrt(reached * (1 - reached) / len(truth)))


def _check_draws(truth: ArrayLike, draws: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    shape, shape_of_draws = jnp.shape(truth), jnp.shape(draws)
    matches = len(shape) >= 1 and len(shape_of_draws) == len(shape) + 1
    if not matches or (shape_of_draws[0], *shape_of_draws[2:]) != shape or 0 in shape_of_draws:
        raise ValueError(
            expected(
                "truth of shape (data sets, ...) and draws of shape (data sets, m, ...)",
                f"shapes {shape} and {shape_of_draws}",
                "Draws of one data set go along the second axis.",
            )
        )
    check_finite("truth", truth)
    check_finite("draws", draws)
    return np.asarray(truth), np.asarray(draws)
