"""Inference with diffusion sites."""

from .linear_gaussian import LinearGaussian
from .reparam import DiffusionReparam
from .smc import TwistedSMC
from .twists import NoTwist, Tempered, Twist

__all__ = ["DiffusionReparam", "LinearGaussian", "NoTwist", "Tempered", "TwistedSMC", "Twist"]
