"""Images on their way along a chain."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._checks import check_finite, expected
from .._typing import ArrayLike
from . import _panels
from ._panels import Limits

__all__ = ["image_grid"]

_PANEL_INCHES = (0.95, 0.95)


def image_grid(
    path: ArrayLike, t: Sequence[int] | None = None, *, limits: Limits | None = None, axes: Any = None
) -> np.ndarray:
    """Images along the chain: a row for each draw, a column for each time.

    Args:
        path: draws of x^{0:T}, shape (num_draws, T + 1, height, width), or with a last axis of 1 or 3 colours: as
            ``ReverseChain.sample`` returns them, a flat event reshaped.
        t: the times to show, integers in 0..T; by default five at equal distances, from data to noise.
        limits: (black, white) of the values; by default the range of x^0. What lies beyond, as noise does, is shown
            as black or white.
        axes: shape (num_draws, len(t)); by default those of a new figure.

    Returns:
        The axes, shape (num_draws, len(t)).

    Raises:
        ValueError: for a path of another shape or with NaN, a time not in 0..T, or axes that do not fit.

    >>> from matplotlib.figure import Figure
    >>> path = np.zeros((3, 11, 8, 8))
    >>> [ax.get_title() for ax in image_grid(path, [0, 5, 10], axes=Figure().subplots(3, 3))[0]]
    ['$t = 0$', '$t = T/2$', '$t = T$']
    """
    images = np.asarray(path)
    if images.ndim not in (4, 5) or (images.ndim == 5 and images.shape[-1] not in (1, 3)) or not images.size:
        raise ValueError(
            expected(
                "path of shape (num_draws, T + 1, height, width), or with 1 or 3 colours after it",
                f"shape {images.shape}",
                "Reshape a flat event into its rows and columns.",
            )
        )
    check_finite("path", images)
    num_steps = images.shape[1] - 1
    t = sorted({round(num_steps * i / 4) for i in range(5)}) if t is None else t
    t = _panels.check_times(t, 0, num_steps)
    if limits is None:
        low, high = float(images[:, 0].min()), float(images[:, 0].max())
        limits = (low, high) if low < high else (low - 0.5, low + 0.5)
    low, high = _panels.check_limits(limits)
    shown = np.clip((images[:, t].astype(float) - low) / (high - low), 0, 1)
    if images.ndim == 5 and images.shape[-1] == 1:
        shown = shown[..., 0]
    axes = _panels.row_or_grid(axes, shown.shape[:2], _PANEL_INCHES)
    for row, draws in zip(axes, shown, strict=True):
        for ax, image in zip(row, draws, strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            _panels.frame(ax)
    for ax, time in zip(axes[0], t, strict=True):
        ax.set_title(_panels.time_title(time, num_steps), fontsize="small")
    return axes
