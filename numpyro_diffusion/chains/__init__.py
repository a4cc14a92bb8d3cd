"""Many steps: the forward and the reverse chain, and the bounds that compare them."""

from . import divergence
from .bounds import AllSteps, ImportanceWeighted, RandomStep, paper_bound
from .forward import ForwardChain
from .reverse import ReverseChain

__all__ = ["AllSteps", "ForwardChain", "ImportanceWeighted", "RandomStep", "ReverseChain", "divergence", "paper_bound"]
