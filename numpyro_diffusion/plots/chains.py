"""Chains in the plane: Fig. 1 of Sohl-Dickstein et al. 2015."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .._checks import check_integer_at_least, expected
from .._typing import Array, ArrayLike
from ..chains import ForwardChain, ReverseChain
from ..wrappers import wrapped_diffusion
from . import _panels
from ._panels import Limits

__all__ = ["drift", "slices", "trajectory"]


def trajectory(
    rng_key: jax.Array,
    model: dist.Distribution,
    data: ArrayLike,
    *,
    t: Sequence[int] | None = None,
    limits: Limits | None = None,
    axes: Any = None,
) -> np.ndarray:
    """The two chains and the drift between them, for data in the plane: the paper's Fig. 1.

    Row 1 is q(x^t), the data carried forward; row 2 is p(x^t), as many draws of the model carried back; row 3 is the
    drift of the reverse chain. A drift belongs to a step, and there is no step 0: below t = 0 stands t = 1. Of a
    transformed model the transform of every state is shown, in the units of the data.

    Args:
        rng_key: JAX random key.
        model: a diffusion of event shape (2,) and batch shape (), or a TransformedDistribution of one.
        data: shape (num_points, 2).
        t: the times to show, integers in 0..T; by default 0, T/2 and T.
        limits: (low, high) of both coordinates in every panel; by default they hold 99% of row 1 at each time.
        axes: shape (3, len(t)); by default those of a new figure.

    Returns:
        The axes, shape (3, len(t)).

    Raises:
        TypeError, ValueError: if model or data are not in the real plane, a time is not in 0..T, or axes do not fit.
    """
    plane = _in_the_plane(model)
    chain = plane.chain
    if chain.stop:
        raise ValueError(expected("a chain down to x^0", f"stop={chain.stop}", "Build the ReverseChain with stop=0."))
    x_0 = _panels.check_points("data", data, 2, "Only the plane can be drawn; pick two coordinates.")
    t = _panels.check_times(t, 0, chain.kernel.num_steps)
    key_forward, key_reverse = jax.random.split(rng_key)
    states = jnp.asarray(plane.states_of(x_0), float)
    noised = plane.value(ForwardChain(chain.kernel, states).sample(key_forward))
    forward = np.concatenate([x_0[:, None], np.asarray(noised)], axis=1)
    limits = _panels.limits_of(forward[:, t]) if limits is None else _panels.check_limits(limits)
    axes = _panels.row_or_grid(axes, (3, len(t)))
    slices(forward, t, limits=limits, color=_panels.DATA, label="$q(x^t)$", axes=axes[0])
    slices(plane.value(chain.sample(key_reverse, (len(x_0),))), t, limits=limits, label="$p(x^t)$", axes=axes[1])
    drift(model, [max(time, 1) for time in t], limits=limits, axes=axes[2])
    # The titles of row 1 serve the rows below, but not where the drift is that of another time.
    for ax in axes[1 : 2 if 0 in t else 3].flat:
        ax.set_title("")
    return axes


def slices(
    path: ArrayLike,
    t: Sequence[int] | None = None,
    *,
    limits: Limits | None = None,
    color: str = _panels.MODEL,
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
    model: dist.Distribution,
    t: Sequence[int] | None = None,
    *,
    limits: Limits | None = None,
    num_arrows: int = 15,
    axes: Any = None,
) -> np.ndarray:
    """Where a reverse step moves each point of the plane on average: f_mu(x^t, t) - x^t.

    Of a transformed model, T(f_mu(x^t, t)) - T(x^t); points outside of the transform's support have no arrow.

    Directions are true. A drift of length m is drawn with length m / (m + median of m over the panel), in units of two
    grid steps: far from the data the drift is so long that in proportion only the corners would be seen.

    Args:
        model: a diffusion of event shape (2,) and batch shape (), or a TransformedDistribution of one.
        t: the steps to show, integers in 1..T; by default 1, T/2 and T.
        limits: (low, high) of both coordinates; by default where the transform takes -3 and 3.
        num_arrows: of a row and of a column of the grid, >= 2.
        axes: shape (len(t),); by default those of a new figure.

    Returns:
        The axes, shape (len(t),).

    Raises:
        TypeError, ValueError: for a model not in the real plane, a step not in 1..T, or axes that do not fit.
    """
    plane = _in_the_plane(model)
    num_steps = plane.chain.kernel.num_steps
    t = _panels.check_times(t, 1, num_steps)
    check_integer_at_least("num_arrows", num_arrows, 2, "The grid has num_arrows rows and columns.")
    if limits is None:
        corners = np.asarray(plane.value(jnp.asarray([[-3.0, -3.0], [3.0, 3.0]])))
        limits = float(corners.min()), float(corners.max())
    low, high = _panels.check_limits(limits)
    axes = _panels.row_or_grid(axes, (len(t),))
    margin = 0.5 * (high - low) / num_arrows
    ticks = np.linspace(low + margin, high - margin, num_arrows)
    grid = jnp.asarray(np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2), float)
    states = plane.state(grid)
    inside = np.isfinite(states).all(-1)
    grid, states = grid[inside], states[inside]
    for ax, time in zip(axes, t, strict=True):
        moves = np.asarray(plane.value(plane.chain.conditional(states, time).mean) - grid)
        lengths = np.linalg.norm(moves, axis=-1, keepdims=True)
        # Two grid steps, 4 margins, are a length that no arrow reaches. Without any drift all arrows are points.
        arrows = 4 * margin * moves / np.maximum(lengths + np.median(lengths), np.finfo(moves.dtype).tiny)
        ax.quiver(
            *np.asarray(grid).T, *arrows.T, color=_panels.INK, angles="xy", scale_units="xy", scale=1.0, width=0.006
        )
    _panels.dress(axes, t, num_steps, (low, high), r"$f_\mu(x^t, t) - x^t$")
    return axes


class _Plane(NamedTuple):
    """A chain of states in the plane, and the ways between its states and what is drawn."""

    chain: ReverseChain
    value: Callable[[Array], Array] = lambda state: state
    state: Callable[[Array], Array] = lambda value: value
    states_of: Callable[[np.ndarray], np.ndarray] = lambda data: data


def _in_the_plane(model: dist.Distribution) -> _Plane:
    wrapped = None if isinstance(model, ReverseChain) else wrapped_diffusion(model)
    if not isinstance(model, ReverseChain) and wrapped is None:
        raise TypeError(
            expected(
                "a Diffusion, a TransformedDistribution of one with an inverse, or a ReverseChain",
                repr(model),
                "Pass the distribution, not the function.",
            )
        )
    plane = _Plane(model) if wrapped is None else _Plane(wrapped.chain, wrapped.value, wrapped.state, wrapped.states_of)
    chain = plane.chain
    if chain.kernel.is_discrete:
        raise TypeError(expected("a model of real numbers", type(chain.kernel).__name__, "Use bit_raster for bits."))
    shape = chain.transition.event_shape if wrapped is None else wrapped.value_shape[len(wrapped.batch_shape) :]
    if not chain.transition.event_shape == shape == (2,) or chain.batch_shape:
        got = f"{shape} and {chain.batch_shape}"
        cure = "Only the plane can be drawn: use slices on two of the coordinates, and give one context."
        raise ValueError(expected("a model of event shape (2,) and batch shape ()", got, cure))
    return plane
