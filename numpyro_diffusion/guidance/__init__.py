"""Corrections of a reverse step by the data: one protocol, and the chain that they make."""

from .base import Guidance, Guided
from .covariances import ErrorCovariance
from .gaussian_factor import GaussianFactor
from .learned import LearnedGuidance, StepCorrection
from .measured_errors import error_covariance
from .moment_matching import MomentMatching
from .network_errors import CovarianceGuidance
from .paper_tilt import PaperTilt
from .pilot import PilotGuidance, pilot_guidance
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
    "PilotGuidance",
    "ReconstructionGuidance",
    "StepCorrection",
    "TiltedChain",
    "error_covariance",
    "pilot_guidance",
]
