"""Train by NumPyro's SVI on minibatches: one call that survives being killed."""

from .fit import fit
from .result import DivergenceError, FitResult
from .validation import Validation

__all__ = ["DivergenceError", "FitResult", "Validation", "fit"]
