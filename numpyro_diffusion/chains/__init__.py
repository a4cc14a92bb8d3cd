"""Many steps: the forward, the reverse and the tilted chain, the tilts, and the bounds that compare chains."""

from . import divergence
from .bounds import AllSteps, ImportanceWeighted, RandomStep, paper_bound
from .forward import ForwardChain
from .guidance import MomentMatching, ReconstructionGuidance
from .reverse import ReverseChain
from .tilted import TiltedChain
from .tilts import GaussianFactor, PaperTilt, Tilt

__all__ = [
    "AllSteps",
    "ForwardChain",
    "GaussianFactor",
    "ImportanceWeighted",
    "MomentMatching",
    "PaperTilt",
    "RandomStep",
    "ReconstructionGuidance",
    "ReverseChain",
    "Tilt",
    "TiltedChain",
    "divergence",
    "paper_bound",
]
