"""Inference with diffusion sites."""

from .gibbs import DiffusionGibbs, DiffusionGibbsState
from .guide import AutoDiffusionGuide
from .importance import ImportanceResult
from .linear_gaussian import LinearGaussian
from .reparam import DiffusionReparam
from .slice import EllipticalSlice, EllipticalSliceState
from .smc import TwistedSMC
from .twists import NoTwist, Tempered, Twist

__all__ = [
    "AutoDiffusionGuide",
    "DiffusionGibbs",
    "DiffusionGibbsState",
    "DiffusionReparam",
    "EllipticalSlice",
    "EllipticalSliceState",
    "ImportanceResult",
    "LinearGaussian",
    "NoTwist",
    "Tempered",
    "Twist",
    "TwistedSMC",
]
