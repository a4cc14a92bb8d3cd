"""Haiku networks for transitions: frozen dataclasses that compare by value, called as ``network(x_t, t)``."""

from .embeddings import Embedded, ImageEmbedding, SeriesEmbedding, SetEmbedding, VectorEmbedding
from .gaussian_skip import GaussianSkip, GaussianSkipUNet
from .mlp import MLP, StepReadoutMLP
from .multi_scale import MultiScaleConv
from .rbf import RBF
from .unet import UNet

__all__ = [
    "MLP",
    "RBF",
    "Embedded",
    "GaussianSkip",
    "GaussianSkipUNet",
    "ImageEmbedding",
    "MultiScaleConv",
    "SeriesEmbedding",
    "SetEmbedding",
    "StepReadoutMLP",
    "UNet",
    "VectorEmbedding",
]
