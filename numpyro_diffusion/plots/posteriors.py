"""Draws before and after an observation: in the plane, and of scalars."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._checks import check_finite, expected
from .._typing import ArrayLike
from . import _panels
from ._panels import Axes

__all__ = ["marginals", "prior_and_posterior"]

_NUM_BINS = 30


def prior_and_posterior(
    prior_draws: ArrayLike,
    posterior_draws: ArrayLike,
    ax: Axes = None,
    *,
    observation: tuple[int, ArrayLike, ArrayLike] | None = None,
    truth: ArrayLike | None = None,
) -> Axes:
    """Draws in the plane before (pale) and after (red) an observation.

    Args:
        prior_draws: shape (..., 2).
        posterior_draws: shape (..., 2), of equal weight.
        ax: where to draw; by default on a new figure.
        observation: (axis, value, sd), a noisy sight of coordinate 0 or 1: a line at the value, a band of one sd.
        truth: the point observed, shape (2,).

    Returns:
        The axes, with a legend.

    Raises:
        TypeError, ValueError: for draws or a truth of another shape or with NaN, or an observation not of this form.
    """
    prior = _panels.check_points("prior_draws", prior_draws, 2, "Pass one point of the plane for each draw.")
    posterior = _panels.check_points(
        "posterior_draws", posterior_draws, 2, "Pass one point of the plane for each draw."
    )
    axis, value, sd = _panels.check_observation((0, 0.0, 0.0) if observation is None else observation)
    if truth is not None and np.shape(truth) != (2,):
        raise ValueError(expected("truth of shape (2,)", f"shape {np.shape(truth)}", "Pass one point of the plane."))
    ax = _panels.one_axes(ax, (4.2, 4.2))
    for points, size, color, name in ((prior, 5, _panels.PALE, "prior"), (posterior, 7, _panels.MODEL, "posterior")):
        ax.scatter(*points.T, s=size, color=color, alpha=0.7, label=name, linewidths=0, rasterized=True)
    if observation is not None:
        line, band = (ax.axvline, ax.axvspan) if axis == 0 else (ax.axhline, ax.axhspan)
        line(value, color=_panels.DATA, linewidth=1.2, zorder=0.5, label=r"observed $\pm$ 1 sd" if sd else "observed")
        if sd:
            band(value - sd, value + sd, color=_panels.DATA, alpha=0.15, linewidth=0, zorder=0)
    if truth is not None:
        style = {"marker": "*", "s": 170, "color": "#f2c14e", "edgecolors": _panels.INK, "linewidths": 0.8}
        ax.scatter(*np.asarray(truth)[:, None], label="truth", zorder=3, **style)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    ax.locator_params(nbins=5)
    _panels.frame(ax)
    legend = ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize="small",
        handlelength=1.2, handletextpad=0.5, columnspacing=1.0, borderpad=0.2)  # fmt: skip
    for handle in legend.legend_handles[:2]:
        handle.set(sizes=[25], alpha=1)
    return ax


def marginals(
    posterior: Mapping[str, ArrayLike],
    prior: Mapping[str, ArrayLike] | None = None,
    axes: Any = None,
    *,
    truth: Mapping[str, ArrayLike] | None = None,
) -> np.ndarray:
    """Histograms of scalars, one to a panel: the posterior (red), the prior (pale), the truth (a line).

    A histogram spans the middle 99% of its own draws in 30 bins; its area is what share of the draws it holds, .99.

    Args:
        posterior: name -> draws of a scalar, any shape, of equal weight: ``{"sigma": mcmc.get_samples()["sigma"]}``.
        prior: the same of the prior; names that the posterior has not are not drawn.
        axes: shape (len(posterior),); by default those of a new figure.
        truth: name -> number.

    Returns:
        The axes, shape (len(posterior),), the first with a legend.

    Raises:
        TypeError: for draws without names.
        ValueError: for no name, no draws or NaN among them, a truth that is no number, or axes that do not fit.

    >>> from matplotlib.figure import Figure
    >>> draws = {"sigma": np.linspace(0.5, 1.5, 100), "rate": np.linspace(0, 1, 100)}
    >>> [ax.get_xlabel() for ax in marginals(draws, axes=Figure().subplots(1, 2))]
    ['sigma', 'rate']
    """
    posterior = _named("posterior", posterior)
    prior = _named("prior", prior or {})
    truth = dict(truth or {})
    if not posterior:
        raise ValueError(expected("draws of a scalar at least", "none", "Pass a dictionary, name -> draws."))
    for name, value in truth.items():
        if np.shape(value) or not np.isfinite(np.asarray(value, float)):
            raise ValueError(expected(f"a finite number as truth of {name!r}", f"{value}", "Give one to each scalar."))
    axes = _panels.row_or_grid(axes, (len(posterior),), (2.8, 2.2))
    for ax, (name, draws) in zip(axes, posterior.items(), strict=True):
        if name in prior:
            _histogram(ax, prior[name], color=_panels.PALE, label="prior", alpha=0.6)
        _histogram(ax, draws, color=_panels.MODEL, label="posterior", alpha=0.75)
        if name in truth:
            ax.axvline(np.asarray(truth[name]).item(), color=_panels.INK, linewidth=1.2, linestyle="--", label="truth")
        ax.set(xlabel=name, yticks=[])
        ax.locator_params(axis="x", nbins=5)
        ax.spines[["left", "top", "right"]].set_visible(False)
        ax.spines["bottom"].set_color(_panels.PALE)
    axes[0].set_ylabel("density")
    if prior or truth:
        axes[0].legend(frameon=False, fontsize="small", handlelength=1.2, borderpad=0.2)
    return axes


def _named(what: str, draws: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    if not isinstance(draws, Mapping):
        cure = 'Pass {"sigma": draws}.'
        raise TypeError(expected(f"{what} as a dictionary, name -> draws", type(draws).__name__, cure))
    result = {name: np.asarray(value, float).ravel() for name, value in draws.items()}
    for name, value in result.items():
        if not value.size:
            raise ValueError(expected(f"draws of {name!r} in {what}", "none", "Pass one number for each draw."))
        check_finite(f"{name} in {what}", value)
    return result


def _histogram(ax: Axes, draws: np.ndarray, **style: Any) -> None:
    low, high = np.quantile(draws, [0.005, 0.995])
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(draws, _NUM_BINS, (low, high))
    ax.stairs(counts / draws.size / np.diff(edges), edges, fill=True, **style)
