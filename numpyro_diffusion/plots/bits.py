"""Binary sequences: Fig. 2 of Sohl-Dickstein et al. 2015."""

import numpy as np

from .._checks import check_binary, expected
from .._typing import ArrayLike
from . import _panels
from ._panels import Axes

__all__ = ["bit_raster"]


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
    >>> ax = bit_raster(np.eye(3), Figure().subplots())
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
