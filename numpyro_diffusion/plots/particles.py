"""How many particles are left at each level of a run of sequential Monte Carlo."""

from typing import Any

import numpy as np

from .._checks import check_finite, check_integer_at_least, expected
from . import _panels
from ._panels import Axes

__all__ = ["effective_sizes"]


def effective_sizes(sizes: Any, ax: Axes = None, *, num_particles: int | None = None) -> Axes:
    """Effective sample size by level, one line for each island, from noise on the left to data on the right.

    A dip tells at which level the twist is a poor guess of what comes; near 1, one particle stands for all.

    Args:
        sizes: a ``TwistedSMC`` that has been run, or its ``effective_sizes``, shape (K, T + 1); with axes of elements
            after these, the smallest over elements is drawn.
        ax: where to draw; by default on a new figure.
        num_particles: N, a line; a ``TwistedSMC`` knows it.

    Returns:
        The axes, with a legend.

    Raises:
        RuntimeError: for an engine that has not been run.
        ValueError: for sizes of another shape, NaN or negative.

    >>> from matplotlib.figure import Figure
    >>> ax = effective_sizes(np.full((4, 11), 60.0), Figure().subplots(), num_particles=100)
    >>> len(ax.lines), ax.get_ylabel()
    (5, 'effective size')
    """
    is_engine = hasattr(sizes, "num_particles")
    if is_engine:
        num_particles = sizes.num_particles if num_particles is None else num_particles
        sizes = sizes.effective_sizes
    array = np.asarray(sizes, float)
    if array.ndim < 2 or not array.size:
        cure = "Pass a TwistedSMC after run, or its effective_sizes."
        raise ValueError(expected("sizes of shape (K, T + 1)", f"shape {array.shape}", cure))
    check_finite("sizes", array)
    if array.min() < 0:
        raise ValueError(expected("sizes >= 0", f"{array.min():.3g}", "An effective size is between 0 and N."))
    if num_particles is not None:
        check_integer_at_least("num_particles", num_particles, 1, "It is N, the particles of an island.")
    by_island = array.reshape(*array.shape[:2], -1).min(-1)
    levels = np.arange(by_island.shape[1])
    ax = _panels.one_axes(ax, (4.6, 2.6))
    for index, line in enumerate(by_island):
        label = "an island" if index == 0 else None
        ax.plot(levels, line, color=_panels.DATA, linewidth=1.0, alpha=0.75, label=label)
    if num_particles is not None:
        ax.axhline(num_particles, color=_panels.PALE, linewidth=1.0, linestyle="--", zorder=0, label="$N$")
    margin = 0.02 * (len(levels) - 1) or 0.5
    ax.set(xlabel="level $t$, from noise to data", ylabel="effective size", xlim=(levels[-1] + margin, -margin))
    ax.set_ylim(bottom=0)
    ax.locator_params(axis="x", integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return ax
