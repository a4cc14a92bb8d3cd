r"""Pictures: Fig. 1 and Fig. 2 of Sohl-Dickstein et al. 2015, a posterior against its prior, a schedule.

    trajectory             q(x^t), p(x^t) and f_mu(x^t, t) - x^t at a few times, for data in the plane (Fig. 1)
    slices, drift          one row of it alone: the states of any chain; the drift of the reverse chain
    bit_raster             binary sequences, one to a row (Fig. 2)
    prior_and_posterior    draws in the plane before and after an observation
    schedule               log signal-to-noise ratio by step

Every function draws on the axes it is given, or on those of a new pyplot figure, and returns them. Nothing is shown or
saved, and matplotlib is not imported before a figure is needed.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _panels
from ._checks import check_binary, check_integer_at_least, expected
from ._panels import PALE, Axes, Limits
from ._typing import ArrayLike
from .chains import ForwardChain, ReverseChain
from .diffusion import Diffusion
from .schedules import Schedule

__all__ = ["bit_raster", "drift", "prior_and_posterior", "schedule", "slices", "trajectory"]

# Data and prior are blue and grey, what the model says is red: apart in lightness too, so they survive a grey print.
_DATA, _MODEL, _INK = "#2b5c8a", "#c8402f", "#333333"


def trajectory(
    key: jax.Array,
    model: Diffusion | ReverseChain,
    data: ArrayLike,
    *,
    t: Sequence[int] | None = None,
    limits: Limits | None = None,
    axes: Any = None,
) -> np.ndarray:
    """The two chains and the drift between them, for data in the plane: the paper's Fig. 1.

    Row 1 is q(x^t), the data carried forward; row 2 is p(x^t), as many draws of the model carried back; row 3 is the
    drift of the reverse chain. A drift belongs to a step, and there is no step 0: below t = 0 stands t = 1.

    Args:
        key: JAX random key.
        model: a diffusion of event shape (2,) and batch shape ().
        data: shape (num_points, 2).
        t: the times to show, integers in 0..T; by default 0, T/2 and T.
        limits: (low, high) of both coordinates in every panel; by default they hold 99% of row 1 at each time.
        axes: shape (3, len(t)); by default those of a new figure.

    Returns:
        The axes, shape (3, len(t)).

    Raises:
        TypeError, ValueError: if model or data are not in the real plane, a time is not in 0..T, or axes do not fit.
    """
    chain = _chain_in_the_plane(model)
    if chain.stop:
        raise ValueError(expected("a chain down to x^0", f"stop={chain.stop}", "Build the ReverseChain with stop=0."))
    x_0 = _panels.check_points("data", data, 2, "Only the plane can be drawn; pick two coordinates.")
    t = _panels.check_times(t, 0, chain.kernel.num_steps)
    key_forward, key_reverse = jax.random.split(key)
    noised = ForwardChain(chain.kernel, jnp.asarray(x_0, float)).sample(key_forward)
    forward = np.concatenate([x_0[:, None], np.asarray(noised)], axis=1)
    limits = _panels.limits_of(forward[:, t]) if limits is None else _panels.check_limits(limits)
    axes = _panels.row_or_grid(axes, (3, len(t)))
    slices(forward, t, limits=limits, color=_DATA, label="$q(x^t)$", axes=axes[0])
    slices(chain.sample(key_reverse, (len(x_0),)), t, limits=limits, label="$p(x^t)$", axes=axes[1])
    drift(chain, [max(time, 1) for time in t], limits=limits, axes=axes[2])
    # The titles of row 1 serve the rows below, but not where the drift is that of another time.
    for ax in axes[1 : 2 if 0 in t else 3].flat:
        ax.set_title("")
    return axes


def slices(
    path: ArrayLike,
    t: Sequence[int] | None = None,
    *,
    limits: Limits | None = None,
    color: str = _MODEL,
    label: str = "$x^t$",
    axes: Any = None,
) -> np.ndarray:
    """The states of a chain in the plane at a few times, all on the same scale.

    Args:
        path: draws of x^{0:T}, shape (..., T + 1, 2), as ``ReverseChain.sample`` returns them.
        t: the times to show, integers in 0..T; by default 0, T/2 and T.
        limits: (low, high) of both coordinates in every panel; by default they hold 99% of the points at each time.
        color: of the points, any matplotlib colour.
        label: at the left of the row.
        axes: shape (len(t),); by default those of a new figure.

    Returns:
        The axes, shape (len(t),).

    Raises:
        TypeError, ValueError: for a path of another shape or with NaN, a time not in 0..T, or axes that do not fit.

    >>> from matplotlib.figure import Figure
    >>> path = jax.random.normal(jax.random.key(0), (50, 11, 2))
    >>> [ax.get_title() for ax in slices(path, axes=Figure().subplots(1, 3))]
    ['$t = 0$', '$t = T/2$', '$t = T$']
    """
    points = _panels.check_points("path", path, 3, "Draw it with ReverseChain.sample and pick two coordinates.")
    num_steps = points.shape[1] - 1
    t = _panels.check_times(t, 0, num_steps)
    limits = _panels.limits_of(points[:, t]) if limits is None else _panels.check_limits(limits)
    axes = _panels.row_or_grid(axes, (len(t),))
    # Ink in proportion: a few hundred points must be visible, and ten thousand must not run together.
    size, alpha = (float(np.clip(c / math.sqrt(len(points)), *ends)) for c, ends in ((90, (1, 9)), (20, (0.3, 0.9))))
    for ax, time in zip(axes, t, strict=True):
        ax.scatter(*points[:, time].T, s=size, alpha=alpha, color=color, linewidths=0, rasterized=True)
    _panels.dress(axes, t, num_steps, limits, label)
    return axes


def drift(
    model: Diffusion | ReverseChain,
    t: Sequence[int] | None = None,
    *,
    limits: Limits = (-3.0, 3.0),
    num_arrows: int = 15,
    axes: Any = None,
) -> np.ndarray:
    """Where a reverse step moves each point of the plane on average: f_mu(x^t, t) - x^t.

    Directions are true. A drift of length m is drawn with length m / (m + median of m over the panel), in units of two
    grid steps: far from the data the drift is so long that in proportion only the corners would be seen.

    Args:
        model: a diffusion of event shape (2,) and batch shape ().
        t: the steps to show, integers in 1..T; by default 1, T/2 and T.
        limits: (low, high) of both coordinates.
        num_arrows: of a row and of a column of the grid, >= 2.
        axes: shape (len(t),); by default those of a new figure.

    Returns:
        The axes, shape (len(t),).

    Raises:
        TypeError, ValueError: for a model not in the real plane, a step not in 1..T, or axes that do not fit.
    """
    chain = _chain_in_the_plane(model)
    num_steps = chain.kernel.num_steps
    t = _panels.check_times(t, 1, num_steps)
    check_integer_at_least("num_arrows", num_arrows, 2, "The grid has num_arrows rows and columns.")
    low, high = _panels.check_limits(limits)
    axes = _panels.row_or_grid(axes, (len(t),))
    margin = 0.5 * (high - low) / num_arrows
    ticks = np.linspace(low + margin, high - margin, num_arrows)
    grid = jnp.asarray(np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2), float)
    for ax, time in zip(axes, t, strict=True):
        moves = np.asarray(chain.conditional(grid, time).mean - grid)
        lengths = np.linalg.norm(moves, axis=-1, keepdims=True)
        # Two grid steps, 4 margins, are a length that no arrow reaches. Without any drift all arrows are points.
        arrows = 4 * margin * moves / np.maximum(lengths + np.median(lengths), np.finfo(moves.dtype).tiny)
        ax.quiver(*np.asarray(grid).T, *arrows.T, color=_INK, angles="xy", scale_units="xy", scale=1.0, width=0.006)
    _panels.dress(axes, t, num_steps, (low, high), r"$f_\mu(x^t, t) - x^t$")
    return axes


def bit_raster(draws: ArrayLike, ax: Axes = None) -> Axes:
    """Binary sequences as a raster, one to a row, ones dark: the paper's Fig. 2.

    Args:
        draws: zeros and ones, shape (num_sequences, num_bits).
        ax: where to draw; by default on a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: for another shape, or a value that is neither 0 nor 1.

    >>> from matplotlib.figure import Figure
    >>> ax = bit_raster(jnp.eye(3), Figure().subplots())
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('bit', 'sequence')
    """
    bits = np.asarray(draws)
    if bits.ndim != 2 or not bits.size:
        cure = "Flatten batches into one axis."
        raise ValueError(expected("draws of shape (num_sequences, num_bits)", f"shape {bits.shape}", cure))
    check_binary("draws", bits)
    rows, columns = bits.shape
    # Square cells up to a page; beyond that they shrink together.
    ax = _panels.one_axes(ax, (min(0.13 * columns, 6.5) + 0.7, min(0.13 * rows, 6.5) + 0.6))
    ax.imshow(bits.astype(float), cmap="Greys", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    ax.set(xlabel="bit", ylabel="sequence")
    ax.locator_params(integer=True)
    # White lines keep equal neighbours apart, thinner than the rows however many there are.
    ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", axis="y", color="white", linewidth=min(0.9, 40 / rows))
    ax.tick_params(which="minor", length=0)
    _panels.frame(ax)
    return ax


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
    for points, size, color, name in ((prior, 5, PALE, "prior"), (posterior, 7, _MODEL, "posterior")):
        ax.scatter(*points.T, s=size, color=color, alpha=0.7, label=name, linewidths=0, rasterized=True)
    if observation is not None:
        line, band = (ax.axvline, ax.axvspan) if axis == 0 else (ax.axhline, ax.axhspan)
        line(value, color=_DATA, linewidth=1.2, zorder=0.5, label=r"observed $\pm$ 1 sd" if sd else "observed")
        if sd:
            band(value - sd, value + sd, color=_DATA, alpha=0.15, linewidth=0, zorder=0)
    if truth is not None:
        style = {"marker": "*", "s": 170, "color": "#f2c14e", "edgecolors": _INK, "linewidths": 0.8}
        ax.scatter(*np.asarray(truth)[:, None], label="truth", zorder=3, **style)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    ax.locator_params(nbins=5)
    _panels.frame(ax)
    legend = ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize="small",
        handlelength=1.2, handletextpad=0.5, columnspacing=1.0, borderpad=0.2)  # fmt: skip
    for handle in legend.legend_handles[:2]:
        handle.set(sizes=[25], alpha=1)
    return ax


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
        ax.axhline(0.0, color=PALE, linewidth=0.8, zorder=0)
    few = {"marker": "o", "markersize": 3} if len(t) <= 50 else {}
    ax.plot(t, log_snr[t], label=label, linewidth=1.4, **few)
    ax.set(xlabel="step $t$", ylabel="log signal-to-noise ratio")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _chain_in_the_plane(model: Diffusion | ReverseChain) -> ReverseChain:
    chain = model.chain if isinstance(model, Diffusion) else model
    if not isinstance(chain, ReverseChain):
        raise TypeError(expected("a Diffusion or a ReverseChain", repr(model), "Pass the law, not the function."))
    if chain.kernel.is_discrete:
        raise TypeError(expected("a model of real numbers", type(chain.kernel).__name__, "Use bit_raster for bits."))
    if chain.transition.event_shape != (2,) or chain.batch_shape:
        got = f"{chain.transition.event_shape} and {chain.batch_shape}"
        cure = "Only the plane can be drawn: use slices on two of the coordinates, and give one context."
        raise ValueError(expected("a model of event shape (2,) and batch shape ()", got, cure))
    return chain
