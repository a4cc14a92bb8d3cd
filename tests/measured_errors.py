"""Means of draws with standard errors that are measured from the same draws, and the comparison with what is exact.

No tolerance is chosen by hand: an error comes from independent draws, from the effective number of a chain's, or from
the spread of independent islands or runs. A comparison also says what it must refuse (the prior's value, most often),
and fails if the draws could not tell it from the right one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpyro.diagnostics import effective_sample_size

LIMIT = 5.0  # standard errors: a right engine fails one comparison in 1.7 million


class Mean(NamedTuple):
    """A mean and its standard error, of one shape."""

    value: np.ndarray
    error: np.ndarray


def of_independent(values: Any) -> Mean:
    """Of independent draws, shape (n, ...)."""
    values = np.asarray(values, float)
    return Mean(values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values)))


def of_chains(values: Any) -> Mean:
    """Of chains, shape (chains, draws, ...): their effective number is measured."""
    values = np.asarray(values, float)
    return Mean(values.mean((0, 1)), values.std((0, 1)) / np.sqrt(effective_sample_size(values)))


def of_weighted(values: Any, log_weights: Any) -> Mean:
    """Of independent draws with weights, shape (n, ...) and (n,): the delta method on the ratio of two means."""
    return of_islands(values, log_weights, len(log_weights))


def of_islands(values: Any, log_weights: Any, num_islands: int) -> Mean:
    """Of K independent islands of N particles, values (K N, ...) and weights (K N,): from the spread of their parts."""
    values, weights = np.asarray(values, float), np.exp(np.asarray(log_weights, float))
    weights = (weights / weights.sum()).reshape(-1, *(1,) * (values.ndim - 1))
    mean = (weights * values).sum(0)
    parts = (weights * (values - mean)).reshape(num_islands, -1, *mean.shape).sum(1)
    return Mean(mean, np.sqrt((parts**2).sum(0) * num_islands / (num_islands - 1)))


def of_resampled(values: Any, weighted: Mean) -> Mean:
    """Of draws (n, ...) from weighted particles: the particles' own error, and at most that of n independent draws."""
    drawn = of_independent(values)
    return Mean(drawn.value, np.hypot(drawn.error, weighted.error))


def agree(found: Mean, wanted: Any) -> bool:
    """Whether all of a mean lies within ``LIMIT`` of its errors."""
    assert np.isfinite(found.error).all()
    return bool((np.abs(found.value - wanted) <= LIMIT * found.error + np.finfo(np.float32).eps).all())


def check(found: Mean, wanted: Any, refused: Any = None) -> None:
    """Fails unless the mean agrees with what is exact and tells it from what is wrong.

    Args:
        found: the mean.
        wanted: what is exact.
        refused: what is wrong, such as the prior's; in some entry it must lie so far from ``wanted``, twice ``LIMIT``
            errors, that draws which have it would be found out.
    """
    assert agree(found, wanted), f"{found.value} +- {found.error} where {wanted} is exact"
    if refused is not None:
        apart = np.abs(np.subtract(refused, wanted)) > 2 * LIMIT * found.error
        assert apart.any(), f"errors of {found.error} do not tell {wanted} from {refused}"


def check_islands(
    smc: Any, function: Callable[[dict], Any], wanted: Any, refused: Any = None, element: int | None = None
) -> None:
    """Check the mean of a function of the samples over a TwistedSMC's weighted particles and over its draws.

    Args:
        smc: after its run.
        function: of site name -> values of n draws, to (n, ...).
        wanted: its exact mean.
        refused: what is wrong.
        element: whose weights count, where a plate was filtered element by element.
    """
    values, log_weights = smc.get_weighted_samples()
    log_weights = log_weights if element is None else log_weights[:, element]
    particles = of_islands(function(values), log_weights, smc.num_islands)
    check(particles, wanted, refused)
    check(of_resampled(function(smc.get_samples()), particles), wanted, refused)


class Moments(NamedTuple):
    """Mean (d,) and covariance (d, d)."""

    mean: Any
    covariance: Any

    def of(self, x: Any) -> np.ndarray:
        """X and (x - mean)(x - mean)^T of draws (n, d), d + d^2 numbers for each."""
        x = np.asarray(x, float)
        apart = x - self.mean
        return np.concatenate([x, (apart[:, :, None] * apart[:, None, :]).reshape(len(x), -1)], axis=1)

    def expected(self, of: "Moments") -> np.ndarray:
        """What :meth:`of` is on average where x has these moments, and the function is that of others."""
        apart = np.subtract(self.mean, of.mean)
        return np.concatenate([self.mean, (self.covariance + np.outer(apart, apart)).ravel()])


def check_moments(
    smc: Any, select: Callable[[dict], Any], wanted: Moments, prior: Moments, element: int | None = None
) -> None:
    """Check means and covariances of a TwistedSMC's particles and draws, which must not pass as the prior's.

    Args:
        smc: after its run.
        select: site name -> values of n draws, to (n, d).
        wanted: exact.
        prior: the prior's.
        element: as in :func:`check_islands`.
    """
    function = lambda samples: wanted.of(select(samples))
    check_islands(smc, function, wanted.expected(wanted), prior.expected(wanted), element)
