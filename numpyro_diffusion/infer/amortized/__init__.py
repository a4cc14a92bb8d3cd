"""What is learned of a model once: posteriors for every data set, corrected for each, and likelihoods."""

from .amortized import AmortizedPosterior
from .correction import Corrected
from .each import ConditionedPosteriors, CorrectedPosteriors
from .likelihood import AmortizedLikelihood
from .posterior import ConditionedPosterior

__all__ = [
    "AmortizedLikelihood",
    "AmortizedPosterior",
    "ConditionedPosterior",
    "ConditionedPosteriors",
    "Corrected",
    "CorrectedPosteriors",
]
