"""Names of ArviZ that are bound to its version. ArviZ and xarray take two seconds to import: the first call does it."""

import importlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["as_tree", "pareto_k"]

_LEAST_WEIGHTS = 25


def as_tree(groups: Mapping[str, Any], attributes: Mapping[str, Any]) -> Any:
    """Data sets by group as one ``InferenceData``, or from ArviZ 1 on ``xarray.DataTree``."""
    arviz = importlib.import_module("arviz")
    if int(arviz.__version__.split(".")[0]) < 1:  # to ask ArviZ 1 for the name warns
        return arviz.InferenceData(attrs=dict(attributes), **groups)
    tree = importlib.import_module("xarray").DataTree.from_dict(dict(groups))
    tree.attrs.update(attributes)
    return tree


def pareto_k(log_weights: np.ndarray) -> float:
    """Shape of the generalised Pareto distribution of the largest weights, by ArviZ; inf of fewer than 25 weights.

    The fit is of the largest fifth. Of four or fewer ArviZ 0 says inf, and ArviZ 1 raises.
    """
    if len(log_weights) < _LEAST_WEIGHTS:
        return math.inf
    arviz = importlib.import_module("arviz")
    if hasattr(arviz, "psislw"):
        return float(arviz.psislw(log_weights)[1])
    # ArviZ 1 takes log likelihoods, whose inverse are the ratios of leave-one-out.
    return float(importlib.import_module("arviz_stats.base").array_stats.psislw(-log_weights)[1])
