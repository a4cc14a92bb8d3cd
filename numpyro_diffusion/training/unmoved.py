"""A flat loss with parameters that hardly moved: a training that trained nothing."""

import math
import warnings

import jax
import numpy as np

from .._checks import expected
from .._typing import PyTree
from .losses import Losses

__all__ = ["share_moved", "warn_unmoved"]

_LEAST_MOVED = 0.01  # of their size: a network whose weights moved less computes what it did at first


def share_moved(begun: PyTree, ended: PyTree) -> float:
    """The size of the change of all parameters, of their size; infinite where they began at 0 or there are none."""
    change = jax.tree.map(lambda new, old: np.asarray(new, np.float64) - old, ended, begun)
    size = _norm(begun)
    return _norm(change) / size if size else math.inf


def _norm(tree: PyTree) -> float:
    return math.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in jax.tree.leaves(tree)))


def warn_unmoved(losses: Losses, share: float) -> None:
    """A flat loss may be that of a model with nothing to learn; of weights that did not move it is not."""
    if share >= _LEAST_MOVED:
        return
    first, last = losses.first_and_last()
    wanted = f"a loss that falls from {first:.3g} nats per row, where it began"
    got = f"{last:.3g} after {len(losses.steps)} steps, and parameters that moved by {share:.2g} of their size"
    cure = "Raise the learning rate, and look for jax.lax.stop_gradient and for parameters that the loss does not see."
    warnings.warn(expected(wanted, got, cure), stacklevel=4)
