"""Named estimates of log p(x^0), and the divergence between chains that is made of the same terms."""

from . import divergence
from .base import Estimator
from .bounds import AllSteps, RandomStep, paper_bound
from .density import AsDensity
from .importance import ImportanceWeighted

__all__ = ["AllSteps", "AsDensity", "Estimator", "ImportanceWeighted", "RandomStep", "divergence", "paper_bound"]
