"""Reverse steps corrected by the data, and the chain that they make."""

from .reconstruction import MomentMatching, ReconstructionGuidance
from .tilted_chain import TiltedChain
from .tilts import GaussianFactor, PaperTilt, Tilt

__all__ = ["GaussianFactor", "MomentMatching", "PaperTilt", "ReconstructionGuidance", "Tilt", "TiltedChain"]
