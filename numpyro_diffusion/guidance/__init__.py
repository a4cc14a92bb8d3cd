"""Corrections of a reverse step by the data: one protocol, and the chain that they make."""

from .base import Guidance, Guided
from .error_covariance import CovarianceGuidance, ErrorCovariance, error_covariance
from .gaussian_factor import GaussianFactor
from .learned import LearnedGuidance, StepCorrection
from .moment_matching import MomentMatching
from .paper_tilt import PaperTilt
from .reconstruction import ReconstructionGuidance
from .tilted_chain import TiltedChain

__all__ = [
    "CovarianceGuidance",
    "ErrorCovariance",
    "GaussianFactor",
    "Guidance",
    "Guided",
    "LearnedGuidance",
    "MomentMatching",
    "PaperTilt",
    "ReconstructionGuidance",
    "StepCorrection",
    "TiltedChain",
    "error_covariance",
]
