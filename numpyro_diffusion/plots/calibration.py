r"""Whether posteriors are what they claim, over many simulated data sets.

    ranks       the truth's rank among draws of its posterior is uniform on 0..L if and only if, on average over
                data, the posterior is right
    coverage    an interval of probability a holds the truth in a share a of the data sets

References: Talts, Betancourt, Simpson, Vehtari, Gelman 2018, Validating Bayesian inference algorithms with
simulation-based calibration.
"""

import importlib

import numpy as np

from .._checks import check_finite, check_integer_at_least, expected
from .._typing import ArrayLike
from . import _panels
from ._panels import Axes

__all__ = ["coverage", "sbc_ranks"]

_MOST_BINS = 20
_LEAST_COUNT = 5  # expected in a bin, where its number is chosen here


def sbc_ranks(
    ranks: ArrayLike, num_draws: int, ax: Axes = None, *, num_bins: int | None = None, probability: float = 0.95
) -> Axes:
    """Histogram of ranks, and the band in which all of its bars lie if the ranks are uniform.

    The band is simultaneous: with at least ``probability`` no bar of uniform ranks leaves it (Bonferroni: each bar's
    binomial interval holds with 1 - (1 - probability) / num_bins). A hump means posteriors too wide, a bowl too narrow,
    a slope biased.

    Args:
        ranks: of the truth among the posterior's draws, integers in 0..num_draws, shape (num_data_sets,).
        num_draws: L, of each posterior; there are L + 1 ranks.
        ax: where to draw; by default on a new figure.
        num_bins: a divisor of L + 1, so that each holds as many ranks; by default the largest up to 20 with 5
            data sets or more in each.
        probability: of the band.

    Returns:
        The axes.

    Raises:
        ValueError: for ranks that are not integers in 0..L, a number of bins that does not divide L + 1, or a
            probability not in (0, 1).

    >>> from matplotlib.figure import Figure
    >>> ax = sbc_ranks(np.arange(200) % 100, 99, Figure().subplots())
    >>> len(ax.patches), ax.get_xlabel()
    (2, 'rank of the truth')
    """
    num_draws = check_integer_at_least("num_draws", num_draws, 1, "It is the number of draws of each posterior.")
    values = np.asarray(ranks)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iu":
        cure = "One for each data set: sum(draws < truth)."
        raise ValueError(expected("ranks of shape (num_data_sets,), integers", f"{values.dtype}{values.shape}", cure))
    if values.min() < 0 or values.max() > num_draws:
        cure = "num_draws is the number of draws among which the truth is ranked."
        raise ValueError(expected(f"ranks in 0..{num_draws}", f"{values.min()} to {values.max()}", cure))
    if not 0 < probability < 1:
        raise ValueError(expected("probability in (0, 1)", f"{probability}", "0.95 is usual."))
    num_bins = _bins(num_bins, num_draws + 1, values.size)
    width = (num_draws + 1) // num_bins
    counts = np.bincount(values // width, minlength=num_bins)
    tail = (1 - probability) / num_bins / 2
    binomial = importlib.import_module("scipy.stats").binom(values.size, 1 / num_bins)
    low, high = binomial.ppf(tail), binomial.ppf(1 - tail)
    ax = _panels.one_axes(ax, (4.2, 2.6))
    edges = np.arange(num_bins + 1) * width - 0.5
    ax.stairs(counts, edges, fill=True, color=_panels.DATA, alpha=0.6)
    label = f"all bars of uniform ranks, {probability:.3g}"
    ax.axhspan(low, high, color=_panels.PALE, alpha=0.3, linewidth=0, label=label, zorder=0)
    for height, style in ((low, "--"), (values.size / num_bins, ":"), (high, "--")):
        ax.axhline(height, color=_panels.INK, linewidth=0.8, linestyle=style)
    ax.set(xlabel="rank of the truth", ylabel="data sets", xlim=(edges[0], edges[-1]))
    ax.set_ylim(0, 1.25 * max(high, counts.max()))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax


def coverage(
    expected_coverage: ArrayLike,
    empirical_coverage: ArrayLike,
    ax: Axes = None,
    *,
    num_data_sets: int | None = None,
    label: str | None = None,
) -> Axes:
    """How often intervals held the truth against how often they should: on the diagonal if all is right.

    Below it, posteriors are too narrow. The band is pointwise: at any one level the share lies in it with 95%.

    Args:
        expected_coverage: probabilities of the intervals, in [0, 1], shape (num_levels,).
        empirical_coverage: share of the data sets whose interval held the truth, shape (num_levels,).
        ax: where to draw; by default on a new figure. Call again with the same axes to compare engines.
        num_data_sets: how many there were; draws the band.
        label: for ``ax.legend()``.

    Returns:
        The axes.

    Raises:
        ValueError: for shares that are not in [0, 1], or arrays of other shapes.

    >>> from matplotlib.figure import Figure
    >>> levels = np.linspace(0.1, 0.9, 9)
    >>> coverage(levels, levels, Figure().subplots(), num_data_sets=100).get_ylabel()
    'empirical coverage'
    """
    levels, shares = np.asarray(expected_coverage, float), np.asarray(empirical_coverage, float)
    if levels.ndim != 1 or levels.shape != shares.shape or not levels.size:
        got = f"{levels.shape} and {shares.shape}"
        raise ValueError(expected("expected and empirical coverage of one shape (num_levels,)", got, "Pair them."))
    for name, array in (("expected_coverage", levels), ("empirical_coverage", shares)):
        check_finite(name, array)
        if array.min() < 0 or array.max() > 1:
            got = f"{array.min():.3g} to {array.max():.3g}"
            raise ValueError(expected(f"{name} in [0, 1]", got, "They are shares, not percents."))
    if num_data_sets is not None:
        check_integer_at_least("num_data_sets", num_data_sets, 1, "It is the number of simulated data sets.")
    ax = _panels.one_axes(ax, (3.2, 3.2))
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color=_panels.PALE, linewidth=1.0, zorder=0)
        if num_data_sets is not None:
            fine = np.linspace(0, 1, 201)
            binomial = importlib.import_module("scipy.stats").binom(num_data_sets, fine)
            ends = (binomial.ppf(tail) / num_data_sets for tail in (0.025, 0.975))
            ax.fill_between(fine, *ends, color=_panels.PALE, alpha=0.45, linewidth=0, zorder=0)
    order = np.argsort(levels)
    colors = (_panels.MODEL, _panels.DATA, _panels.INK)
    color = colors[(len(ax.lines) - 1) % len(colors)]
    ax.plot(levels[order], shares[order], marker="o", markersize=3.5, linewidth=1.2, label=label, color=color)
    ax.set(xlabel="expected coverage", ylabel="empirical coverage", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _bins(num_bins: int | None, num_ranks: int, num_data_sets: int) -> int:
    """A divisor of the number of ranks."""
    if num_bins is None:
        most = max(2, min(_MOST_BINS, num_data_sets // _LEAST_COUNT))
        divisors = [count for count in range(2, most + 1) if num_ranks % count == 0]
        if not divisors:
            cure = f"Draw 99 or 127, say; or pass num_bins={num_ranks}, a bin for each rank."
            raise ValueError(expected(f"num_draws + 1 with a divisor up to {most}", num_ranks, cure))
        return divisors[-1]
    num_bins = check_integer_at_least("num_bins", num_bins, 2, "One bin says nothing.")
    if num_ranks % num_bins:
        cure = "Otherwise uniform ranks would not fill the bins alike."
        raise ValueError(expected(f"num_bins a divisor of num_draws + 1 = {num_ranks}", num_bins, cure))
    return num_bins
