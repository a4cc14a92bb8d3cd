"""Named estimates of log p(x^0), and the divergence between chains that is made of the same terms."""

from . import divergence
from .bounds import AllSteps, ImportanceWeighted, RandomStep, paper_bound
from .density import AsDensity

__all__ = ["AllSteps", "AsDensity", "ImportanceWeighted", "RandomStep", "divergence", "paper_bound"]
