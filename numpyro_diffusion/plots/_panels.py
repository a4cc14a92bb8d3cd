"""What the pictures share: figures of panels, their frames, and checks of what goes into them.

matplotlib is imported by the first call that makes a figure, not with the package.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .._checks import check_finite, expected
from .._typing import ArrayLike

__all__ = [
    "DATA",
    "INK",
    "MODEL",
    "PALE",
    "Axes",
    "Limits",
    "check_limits",
    "check_observation",
    "check_points",
    "check_times",
    "dress",
    "frame",
    "limits_of",
    "one_axes",
    "row_or_grid",
    "time_title",
]

Axes: TypeAlias = Any  # matplotlib.axes.Axes: an annotation must not import matplotlib
Limits: TypeAlias = tuple[float, float]

# Data and prior are blue and grey, what the model says is red: apart in lightness too, so they survive a grey print.
DATA, MODEL, INK = "#2b5c8a", "#c8402f", "#333333"
PALE = "#b9c2cc"  # frames, helping lines, the prior
_PANEL_INCHES = (2.1, 2.1)  # three columns are then as wide as a page's text


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        cure = 'Install it: pip install "numpyro-diffusion[examples]".'
        raise ImportError(expected("matplotlib", "no such package", cure)) from error
    return pyplot


def one_axes(ax: Axes, size: tuple[float, float]) -> Axes:
    """The axes given, or one on a new figure of ``size`` inches."""
    return _pyplot().subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def row_or_grid(axes: Any, shape: tuple[int, ...], panel_inches: tuple[float, float] = _PANEL_INCHES) -> np.ndarray:
    """The array of axes given, or that of a new figure of panels of this size."""
    if axes is None:
        rows, columns = (1, *shape)[-2:]
        size = (panel_inches[0] * columns + 0.3, panel_inches[1] * rows + 0.3)
        axes = _pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)[1].reshape(shape)
    axes = np.asarray(axes, dtype=object)
    if axes.shape != shape:
        raise ValueError(expected(f"axes of shape {shape}", f"shape {axes.shape}", "One panel for each row and time."))
    return axes


def dress(axes: np.ndarray, t: list[int], num_steps: int, limits: Limits, label: str) -> None:
    """Titles, equal limits and frames of a row of panels, and its label at the left."""
    for ax, time in zip(axes, t, strict=True):
        ax.set(title=time_title(time, num_steps), xlim=limits, ylim=limits, aspect="equal", xticks=[], yticks=[])
        frame(ax)
    axes[0].set_ylabel(label)


def time_title(time: int, num_steps: int) -> str:
    """The time as the paper writes it."""
    name = {num_steps: "T", num_steps / 2: "T/2", 0: "0"}.get(time, str(time))
    return f"$t = {name}$"


def frame(ax: Axes) -> None:
    """A frame that recedes behind the data."""
    for spine in ax.spines.values():
        spine.set(color=PALE, linewidth=0.8)
    ax.tick_params(color=PALE)


def limits_of(points: np.ndarray) -> Limits:
    """The square that holds 99% of the coordinates at each time, and a margin: outliers must not shrink the rest."""
    low, high = np.quantile(points, [0.005, 0.995], axis=(0, 2))
    margin = (high.max() - low.min()) / 12 or 1.0
    return float(low.min() - margin), float(high.max() + margin)


def check_limits(limits: Limits) -> Limits:
    """The limits, two finite numbers in order."""
    if np.shape(limits) != (2,) or not -math.inf < limits[0] < limits[1] < math.inf:
        raise ValueError(expected("limits (low, high) with low < high", limits, "They hold for both coordinates."))
    return limits


def check_times(t: Sequence[int] | None, first: int, num_steps: int) -> list[int]:
    """Times as integers in first..T; by default the first, the middle and the last."""
    if t is None:
        return sorted({first, max(num_steps // 2, first), num_steps})
    times = np.asarray(t)
    whole = times.ndim == 1 and times.size and times.dtype.kind in "iu"
    if not whole or not first <= times.min() <= times.max() <= num_steps:
        raise ValueError(
            expected(f"t a sequence of integers in {first}..{num_steps}", t, "Time 0 is data, T is noise.")
        )
    return times.tolist()


def check_points(name: str, value: ArrayLike, rank: int, cure: str) -> np.ndarray:
    """Points of the plane as an array of ``rank`` dimensions, the leading ones flattened into the first."""
    points = np.asarray(value)
    if points.ndim < rank or points.shape[-1] != 2 or not points.size:
        shape = "(num_points, 2)" if rank == 2 else "(num_points, T + 1, 2)"
        raise ValueError(expected(f"{name} of shape {shape}", f"shape {points.shape}", cure))
    check_finite(name, points)
    return points.reshape(-1, *points.shape[points.ndim - rank + 1 :])


def check_observation(observation: Any) -> tuple[int, float, float]:
    """(axis, value, sd) with axis 0 or 1 and sd >= 0."""
    axis, value, sd = observation if np.shape(observation) == (3,) else (None, 0.0, 0.0)
    if axis not in (0, 1) or not math.isfinite(value) or not 0 <= sd < math.inf:
        cure = "For example (0, 1.5, 0.1): the first coordinate was seen at 1.5 with a standard deviation of 0.1."
        raise ValueError(expected("observation=(0 or 1, finite value, sd >= 0)", repr(observation), cure))
    return axis, float(value), float(sd)
