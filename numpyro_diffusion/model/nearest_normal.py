r"""Any likelihood of single numbers as the Normal one nearest to it: what guidance takes of Poisson counts, say.

    y ~ p(y | x)      taken as      y ~ N(m(x), v(x)),      m and v the mean and variance of p

which is Gauss-Newton's curvature, exactly, for a family whose natural parameter goes with its mean (Poisson, Bernoulli,
binomial, exponential): m'^2 / v is the Fisher information of x. Three kinds go another way.

- A location family with wide tails: its location, and a variance that grows with the residual r, so that a number far
  off loses its say as it does in p: of Student's t (s^2 (df + 3) + r^2) / (df + 1), the inverse of the location's
  Fisher information at r = 0, and at large r that of iterated reweighting.
- A number that is a transform of another, as LogNormal: that other number.
- A power c of a density, by ``handlers.scale``: the variance over c. Of a Normal that is no approximation.

A number whose variance is 0 or none at all does not guide. *Approximate*, and used for guidance alone, which the ratio
of p and q corrects.

References: McCullagh and Nelder 1989, Chapter 9 (a likelihood by mean and variance); Lange, Little and Taylor 1989
(Student's t by reweighting).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist

from .._compat.numpyro import has_inverse
from .._numerics import expand_right
from .._typing import Array
from ..wrappers import unmask
from .observations import NormalSite, normal_site

__all__ = ["nearest_normal"]

_CLASSES = (dist.CategoricalProbs, dist.CategoricalLogits)  # their values are names, and have no mean
_WIDE_TAILS: dict[Any, Callable[[Any, Array], Array]] = {  # location families: the variance at a residual
    dist.Cauchy: lambda fn, r: (4 * fn.scale**2 + r**2) / 2,
    dist.Laplace: lambda fn, r: fn.scale**2 + fn.scale * jnp.abs(r),
    dist.Logistic: lambda fn, r: 3 * fn.scale**2 + fn.scale * jnp.abs(r),
    dist.StudentT: lambda fn, r: (fn.scale**2 * (fn.df + 3) + r**2) / (fn.df + 1),
}


class _Numbers(NamedTuple):
    """Values, and the mean and the variance that they are taken to have."""

    value: Array
    mean: Array
    variance: Array


def nearest_normal(site: dict) -> NormalSite | None:
    """A traced site as Normal numbers, near or exact; None for vectors, names of classes, and unknown moments."""
    found = normal_site({**site, "scale": None}) or _by_moments(site)
    if found is None or site["scale"] is None:
        return found
    power = expand_right(jnp.asarray(site["scale"]), found.event_dim + (not found.is_diagonal))
    return NormalSite(found.residual, found.spread / power, found.seen, found.event_dim, found.is_diagonal)


def _by_moments(site: dict) -> NormalSite | None:
    inner, mask = unmask(site["fn"])
    numbers = _numbers(inner, jnp.asarray(site["value"]))
    if numbers is None:
        return None
    is_known = (numbers.variance > 0) & jnp.isfinite(numbers.variance)
    for part in (numbers.value, numbers.mean):
        is_known = is_known & jnp.isfinite(part)
    seen = jnp.broadcast_to(mask & is_known, jnp.broadcast_shapes(jnp.shape(site["value"]), site["fn"].shape()))
    value, mean = (jnp.where(seen, part, 0.0) for part in (numbers.value, numbers.mean))
    return NormalSite(value - mean, jnp.where(seen, numbers.variance, 0.0), seen, site["fn"].event_dim, True)


def _numbers(fn: dist.Distribution, value: Array) -> _Numbers | None:
    while isinstance(fn, dist.TransformedDistribution):
        for transform in reversed(fn.transforms):
            if transform.domain.event_dim or not has_inverse(transform):
                return None
            value = transform.inv(value)
        fn, _ = unmask(fn.base_dist)
    if fn.event_dim or isinstance(fn, _CLASSES):
        return None
    for family, variance in _WIDE_TAILS.items():
        if isinstance(fn, family):
            return _Numbers(value, fn.loc, variance(fn, value - fn.loc))
    try:
        return _Numbers(value, jnp.asarray(fn.mean), jnp.asarray(fn.variance))
    except NotImplementedError:
        return None
