"""Inference with diffusion sites."""

from .gibbs import DiffusionGibbs
from .linear_gaussian import LinearGaussian
from .reparam import DiffusionReparam
from .smc import TwistedSMC
from .twists import NoTwist, Tempered, Twist

__all__ = ["DiffusionGibbs", "DiffusionReparam", "LinearGaussian", "NoTwist", "Tempered", "Twist", "TwistedSMC"]
