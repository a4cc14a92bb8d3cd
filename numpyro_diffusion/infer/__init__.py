"""Inference with diffusion sites."""

from ..model.reparam import DiffusionReparam
from ..noise.importance import ImportanceResult
from ..particles.twists.base import NoTwist, Twist
from ..particles.twists.linear_gaussian import LinearGaussian
from ..particles.twists.tempered import Tempered
from .entries import observe_entries
from .gibbs import DiffusionGibbs, DiffusionGibbsState
from .guide import AutoDiffusionGuide
from .hmc import DiffusionHMC, DiffusionHMCState
from .slice import EllipticalSlice, EllipticalSliceState
from .smc import TwistedSMC
from .tempered import TemperedSMC

__all__ = [
    "AutoDiffusionGuide",
    "DiffusionGibbs",
    "DiffusionGibbsState",
    "DiffusionHMC",
    "DiffusionHMCState",
    "DiffusionReparam",
    "EllipticalSlice",
    "EllipticalSliceState",
    "ImportanceResult",
    "LinearGaussian",
    "NoTwist",
    "Tempered",
    "TemperedSMC",
    "Twist",
    "TwistedSMC",
    "observe_entries",
]
