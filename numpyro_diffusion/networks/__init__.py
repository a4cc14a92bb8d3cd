"""Haiku networks for transitions: frozen dataclasses that compare by value, called as ``network(x_t, t)``."""

from .gaussian_skip import GaussianSkip, GaussianSkipUNet
from .mlp import MLP, StepReadoutMLP
from .multi_scale import MultiScaleConv
from .rbf import RBF
from .unet import UNet

__all__ = ["MLP", "RBF", "GaussianSkip", "GaussianSkipUNet", "MultiScaleConv", "StepReadoutMLP", "UNet"]
