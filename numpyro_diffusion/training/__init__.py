"""Train by NumPyro's SVI on minibatches: one call that survives being killed."""

from .fit import fit
from .result import FitResult
from .validation import Validation

__all__ = ["FitResult", "Validation", "fit"]
