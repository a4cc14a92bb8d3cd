"""From data as they come to a prior in their units: one call, with a report."""

from .learn import LearnedPrior, learn_prior
from .report import Report, Tails

__all__ = ["LearnedPrior", "Report", "Tails", "learn_prior"]
