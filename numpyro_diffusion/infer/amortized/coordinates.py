r"""Coordinates in which a posterior is near N(0, I) before anything is trained, and y as the networks see it.

Of each observed number, with median m and half the width h of the middle 68% of the simulations,

    s = squash((y - m) / h),    squash(s) = s for |s| <= 4,  sign(s) (4 + log(|s| - 3)) beyond,

which no heavy tail takes far. A number that is missing has s = 0, and where some may be, what is there is told beside
all s. Of the unknowns' unconstrained coordinates u, and other numbers f that s gives,

    u = a + B f + L x,

with a and B the linear regression of u on f with as much ridge as held-out simulations ask for, and L L^T the
covariance of what it leaves. Where u and y are jointly Gaussian, x given y is N(0, I): a network that begins as the
denoiser of N(0, I) begins at the posterior, up to the errors of a and B. In general x given y is what it has to learn.

Not assumed: that u or y are Gaussian. a, B and L are a change of variables, whatever they are.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..._checks import expected
from ..._typing import Array
from ...learning.gaussians import fit_gaussian
from ...model.simulated_sites import ObservedSite

__all__ = ["Affine", "DataCode", "by_site", "fit_affine", "fit_code"]

_QUANTILES = (0.1587, 0.5, 0.8413)
_LINEAR = 4.0  # in units of h: a normal number is beyond once in 16,000
_RIDGES = (*np.geomspace(1e-6, 10.0, 15).tolist(), np.inf)
_HELD_OUT = 0.2
_MOST_FITTED = 20_000


class DataCode(NamedTuple):
    """What standardises y; all numbers of all observed sites in a row.

    Attributes:
        centre, scale: shape (p,).
        seen: booleans of shape (p,), False behind a mask: such a number is coded as 0.
        told: of which numbers, by index, it is told whether they are there; NaN says that one is missing.
    """

    centre: Array
    scale: Array
    seen: Array
    told: Array

    def __call__(self, y: Array | np.ndarray) -> Array:
        """Codes of y, shape (..., p), float, and of shape (..., told) whether it is there."""
        seen = self.seen
        if self.told.size:  # on the host, where NaN is a value; to jax_debug_nans it is an error
            is_there = ~np.isnan(np.asarray(y))
            seen, y = seen & is_there, np.where(is_there, y, 0.0)
        y = jnp.asarray(y, float)
        s = (jnp.where(seen, y, self.centre).astype(self.centre.dtype) - self.centre) / self.scale
        beyond = jnp.maximum(jnp.abs(s) - _LINEAR, 0)
        s = jnp.where(beyond > 0, jnp.sign(s) * (_LINEAR + jnp.log1p(beyond)), s)
        return jnp.concatenate([s, seen[..., self.told].astype(s.dtype)], axis=-1) if self.told.size else s


class Affine(NamedTuple):
    """u = a + B f + L x.

    Attributes:
        offset: a, shape (d,).
        slope: B, shape (d, features).
        scale_tril: L, shape (d, d).
    """

    offset: Array
    slope: Array
    scale_tril: Array

    def apply(self, x: Array, features: Array) -> Array:
        """The coordinates of x, shape (..., d), features of shape (..., features)."""
        return self.offset + features @ self.slope.T + x @ self.scale_tril.T

    def inverse(self, u: Array, features: Array) -> Array:
        """The x of coordinates."""
        residual = u - self.offset - features @ self.slope.T
        return jnp.linalg.solve(self.scale_tril, residual[..., None])[..., 0]

    def log_volume(self) -> Array:
        """Log |du / dx|, nats."""
        return jnp.log(jnp.diagonal(self.scale_tril)).sum()


def in_a_row(sites: Sequence[ObservedSite], y: Mapping[str, Any]) -> Array | np.ndarray:
    """All numbers of y, with the leading axes of each array in front, shape (..., p), as float; on the host if y is."""
    xp: Any = np if all(isinstance(y[site.name], np.ndarray) for site in sites) else jnp
    flat = [xp.asarray(y[site.name], float) for site in sites]
    return xp.concatenate(
        [x.reshape((*x.shape[: x.ndim - len(site.shape)], -1)) for x, site in zip(flat, sites, strict=True)], axis=-1
    )


def by_site(sites: Sequence[ObservedSite], row: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of a row, shape (p,), in the shape of each site."""
    ends = np.cumsum([math.prod(site.shape) for site in sites])
    return {site.name: part.reshape(site.shape) for site, part in zip(sites, np.split(row, ends[:-1]), strict=True)}


def fit_code(sites: Sequence[ObservedSite], rows: np.ndarray, *, may_lack: bool) -> DataCode:
    """Of simulations, shape (n, p); whether some numbers of a data set may be missing.

    Raises:
        ValueError: for a number that is missing in all simulations.
    """
    if np.isnan(rows).all(0).any():
        got = f"{int(np.isnan(rows).all(0).sum())} that are missing in all"
        raise ValueError(expected("numbers that are seen in some simulations", got, "Leave them out of the site."))
    low, centre, high = np.nanquantile(rows, _QUANTILES, axis=0)
    scale = (high - low) / 2
    # Counts that are nearly always 0: the standard deviation sees those that are not.
    scale = np.where(scale > 0, scale, np.nanstd(rows, axis=0))
    seen = [np.ones(site.shape, bool) if site.seen is None else site.seen for site in sites]
    return DataCode(
        jnp.asarray(centre, float),
        jnp.asarray(np.where(scale > 0, scale, 1.0), float),
        jnp.asarray(np.concatenate([each.reshape(-1) for each in seen])),
        jnp.arange(rows.shape[1] if may_lack else 0),
    )


def fit_affine(u: np.ndarray, features: np.ndarray, *, rng: np.random.Generator) -> Affine:
    """The regression of coordinates, shape (n, d), on features, shape (n, features), and what it leaves."""
    u, features = (np.asarray(rows, np.float64)[:_MOST_FITTED] for rows in (u, features))
    is_out = rng.permutation(len(u)) < _HELD_OUT * len(u)
    best, least = np.inf, np.inf
    for ridge in _RIDGES:
        offset, slope = _ridge(u[~is_out], features[~is_out], ridge)
        loss = float((((u[is_out] - offset - features[is_out] @ slope.T) / u.std(0)) ** 2).mean())
        if loss < least:
            best, least = ridge, loss
    offset, slope = _ridge(u, features, best)
    residual = u - offset - features @ slope.T
    left = fit_gaussian(residual, np.ones(len(residual)), rng=rng)
    return Affine(*(jnp.asarray(part, float) for part in (offset + left.mean, slope, left.scale_tril)))


def _ridge(u: np.ndarray, features: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Offset and slope with a penalty in units of a mean square of the features; none of them where it is infinite."""
    mean, centre = u.mean(0), features.mean(0)
    if not features.shape[1] or np.isinf(ridge):
        return mean, np.zeros((u.shape[1], features.shape[1]))
    f = features - centre
    gram = f.T @ f / len(f)
    penalty = ridge * max(np.trace(gram) / len(gram), 1e-12) * np.eye(len(gram))
    slope = np.linalg.solve(gram + penalty, f.T @ (u - mean) / len(f)).T
    return mean - slope @ centre, slope
