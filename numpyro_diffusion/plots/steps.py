"""By step of the chain: its signal-to-noise ratio, and what each step costs the bound."""

import numpy as np

from .._checks import check_finite, expected
from .._typing import ArrayLike
from ..schedules import Schedule
from . import _panels
from ._panels import Axes

__all__ = ["bound_per_step", "schedule"]


def schedule(schedule: Schedule, ax: Axes = None, *, label: str | None = None) -> Axes:
    """The log signal-to-noise ratio by step: where it falls steeply the chain spends few steps.

    Steps without noise (t = 0) or without signal (T, where b_T = 1) have an infinite ratio and are left out.

    Args:
        schedule: concrete, from :mod:`numpyro_diffusion.schedules` or a kernel's ``schedule``.
        ax: where to draw; by default on a new figure. Call again with the same axes to compare schedules.
        label: for ``ax.legend()``.

    Returns:
        The axes.

    Raises:
        TypeError: for anything else than a schedule.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(expected("a Schedule", repr(schedule), "Pass kernel.schedule, or one of nd.schedules."))
    log_snr = np.asarray(schedule.log_snr)
    t = np.flatnonzero(np.isfinite(log_snr))
    ax = _panels.one_axes(ax, (4.2, 2.8))
    if not ax.lines:
        ax.axhline(0.0, color=_panels.PALE, linewidth=0.8, zorder=0)
    few = {"marker": "o", "markersize": 3} if len(t) <= 50 else {}
    ax.plot(t, log_snr[t], label=label, linewidth=1.4, **few)
    ax.set(xlabel="step $t$", ylabel="log signal-to-noise ratio")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def bound_per_step(
    terms: ArrayLike,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    entropy: ArrayLike | None = None,
    ax: Axes = None,
) -> Axes:
    """What each step contributes to the bound K, and the entropy of the reverse step between its bounds.

    Args:
        terms: of K by step t = 1..T, shape (T,), in nats.
        lower: of the entropy of q(x^{t-1} | x^t), shape (T,), in nats; -inf where there is none, as at t = 1 for
            real data, which leaves a gap.
        upper: of the same.
        entropy: of the model's step p(x^{t-1} | x^t), shape (T,), in nats.
        ax: where to draw; by default on a new figure.

    Returns:
        The axes, with a legend.

    Raises:
        ValueError: for arrays of another or of different shapes, with NaN, or a lower bound above the upper.

    References: Sohl-Dickstein et al. 2015, Eq. 14 and 24.

    >>> from matplotlib.figure import Figure
    >>> ax = bound_per_step(-np.ones(5), np.zeros(5), np.ones(5), ax=Figure().subplots())
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['term of $K$', 'entropy bounds']
    """
    given = {"terms": terms, "lower": lower, "upper": upper, "entropy": entropy}
    arrays = {name: np.asarray(value, float) for name, value in given.items() if value is not None}
    shape = arrays["terms"].shape
    for name, array in arrays.items():
        if len(shape) != 1 or array.shape != shape or not array.size:
            wanted = "(T,)" if name == "terms" else f"{shape}"
            raise ValueError(expected(f"{name} of shape {wanted}", f"shape {array.shape}", "One number for each step."))
        has_value = array != -np.inf if name == "lower" else np.ones(shape, bool)
        check_finite(name, array[has_value])
        arrays[name] = np.where(has_value, array, np.nan)  # matplotlib leaves a gap
    t = np.arange(1, shape[0] + 1)
    if lower is not None and upper is not None:
        gap = np.nan_to_num(arrays["lower"] - arrays["upper"], nan=-1.0)
        if (gap > 1e-4 * (1 + np.abs(arrays["upper"]))).any():  # what float32 leaves of equal bounds
            got = f"lower above upper by {gap.max():.3g} at t = {t[gap.argmax()]}"
            raise ValueError(expected("lower <= upper", got, "Swap them."))
    ax = _panels.one_axes(ax, (4.6, 2.9))
    few = {"marker": "o", "markersize": 3} if len(t) <= 50 else {}
    ax.plot(t, arrays["terms"], color=_panels.MODEL, linewidth=1.4, label="term of $K$", **few)
    if lower is not None and upper is not None:
        ends = arrays["lower"], arrays["upper"]
        ax.fill_between(t, *ends, color=_panels.PALE, alpha=0.6, linewidth=0, label="entropy bounds", zorder=0)
    for name in ("lower", "upper"):
        if name in arrays:
            alone = None if lower is not None and upper is not None else f"{name} bound of the entropy"
            ax.plot(t, arrays[name], color=_panels.PALE, linewidth=1.0, label=alone, zorder=0.5)
    if entropy is not None:
        ax.plot(t, arrays["entropy"], color=_panels.DATA, linewidth=1.2, label="entropy of the step", **few)
    ax.axhline(0.0, color=_panels.PALE, linewidth=0.8, zorder=0)
    ax.set(xlabel="step $t$", ylabel="nats")
    ax.locator_params(axis="x", integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return ax
