"""Posteriors that are learned once for every data set, and corrected for each."""

from .amortized import AmortizedPosterior
from .correction import Corrected
from .posterior import ConditionedPosterior

__all__ = ["AmortizedPosterior", "ConditionedPosterior", "Corrected"]
