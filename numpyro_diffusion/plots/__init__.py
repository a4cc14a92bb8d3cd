"""Pictures: of chains and what they learned, of posteriors, and of how far to trust them.

    trajectory             q(x^t), p(x^t) and f_mu(x^t, t) - x^t at a few times, for data in the plane: the Fig. 1 of
                           Sohl-Dickstein et al. 2015
    slices, drift          one row of it alone: the states of any chain; the drift of the reverse chain
    image_grid             images along the chain
    bit_raster             binary sequences, one to a row: their Fig. 2
    schedule               log signal-to-noise ratio by step
    bound_per_step         what each step contributes to the bound, and the step's entropy
    error_covariance       the covariance of a network's errors, by level
    prior_and_posterior    draws in the plane before and after an observation
    marginals              the same of scalars
    effective_sizes        of particles, by level
    sbc_ranks, coverage    whether posteriors are calibrated

Every function draws on the axes it is given, or on those of a new pyplot figure, and returns them. Nothing is shown or
saved, and matplotlib is not imported before a figure is needed.
"""

from .bits import bit_raster
from .calibration import coverage, sbc_ranks
from .chains import drift, slices, trajectory
from .errors import error_covariance
from .images import image_grid
from .particles import effective_sizes
from .posteriors import marginals, prior_and_posterior
from .steps import bound_per_step, schedule

__all__ = [
    "bit_raster",
    "bound_per_step",
    "coverage",
    "drift",
    "effective_sizes",
    "error_covariance",
    "image_grid",
    "marginals",
    "prior_and_posterior",
    "sbc_ranks",
    "schedule",
    "slices",
    "trajectory",
]
