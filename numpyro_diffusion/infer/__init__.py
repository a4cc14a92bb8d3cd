"""Inference with diffusion sites."""

from .reparam import DiffusionReparam

__all__ = ["DiffusionReparam"]
