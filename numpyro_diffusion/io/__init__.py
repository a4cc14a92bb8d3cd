"""Priors in files: settings and tensors, no code."""

from .saving import load, save

__all__ = ["load", "save"]
