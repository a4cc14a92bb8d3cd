"""Haiku networks for transitions: frozen dataclasses that compare by value, called as ``network(x_t, t)``."""

from .mlp import MLP, StepReadoutMLP
from .rbf import RBF

__all__ = ["MLP", "RBF", "StepReadoutMLP"]
