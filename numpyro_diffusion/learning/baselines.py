r"""What a prior must beat on held-out rows: one Gaussian, a mixture of Gaussians, columns taken one by one.

    one Gaussian          with the shrinkage of :mod:`.gaussians`
    Gaussian mixture      full covariances by expectation maximisation, their number by BIC; no more of them than have
                          fewer numbers than there are rows, and where that is none, the one Gaussian
    independent product   such a mixture for every column alone

Rows are standardised first, and log densities are turned back into the units that they came in. Nothing here knows the
prior: each baseline is fitted to rows that the prior has learned, mixtures to at most 20,000 of them, and scored on
rows that neither has seen.

References: Dempster, Laird and Rubin 1977; Schwarz 1978 (BIC).
"""

from typing import NamedTuple

import numpy as np

from .gaussians import fit_gaussian, log_normal
from .stretches import spread

__all__ = ["baseline_log_densities"]

_MOST_COMPONENTS = 8
_MOST_PASSES = 200
_MOST_ROWS = 20_000  # that a mixture is fitted to
_MOST_COLUMNS = 100  # for a mixture: its parameters grow with the square
_RIDGE = 1e-3  # on the diagonal of covariances of whitened rows, so that no component falls on a point


class _Mixture(NamedTuple):
    log_weights: np.ndarray
    means: np.ndarray
    factors: np.ndarray
    log_likelihood: float


def baseline_log_densities(
    fitted: np.ndarray, weights: np.ndarray, held_out: np.ndarray, *, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Log densities of held-out rows, nats, by the name of the baseline.

    Args:
        fitted: rows to fit to, shape (n, d), no column constant.
        weights: of these, >= 0, shape (n,).
        held_out: rows to score, shape (m, d).
        rng: starts of mixtures, rows left out together.
    """
    loc, scale = fitted.mean(0), fitted.std(0)
    fitted, held_out = (fitted - loc) / scale, (held_out - loc) / scale
    gaussian = fit_gaussian(fitted, weights, rng=rng)
    found = {"one Gaussian": gaussian.log_prob(held_out)}
    some = spread(len(fitted), _MOST_ROWS)
    fitted, weights = fitted[some], weights[some]
    if fitted.shape[1] <= _MOST_COLUMNS:
        # Whitened, so that the ridge is small beside every direction.
        whitened, others = (np.linalg.solve(gaussian.scale_tril, (x - gaussian.mean).T).T for x in (fitted, held_out))
        log_det = np.log(np.diagonal(gaussian.scale_tril)).sum()
        found["Gaussian mixture"] = _log_density(others, _best_mixture(whitened, weights, rng)) - log_det
    pairs = zip(fitted.T[..., None], held_out.T[..., None], strict=True)
    columns = [_log_density(other, _best_mixture(one, weights, rng)) for one, other in pairs]
    found["independent product"] = np.sum(columns, axis=0)
    return {name: values - np.log(scale).sum() for name, values in found.items()}


def _best_mixture(x: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> _Mixture:
    """The number of components with the least BIC; more are not tried once two in a row are worse.

    Args:
        x: rows of which one Gaussian says N(0, I), shape (n, d).
        weights: of the rows, shape (n,).
        rng: starts.
    """
    weights = weights * len(x) / weights.sum()
    d = x.shape[1]
    tried: list[tuple[float, _Mixture]] = []
    for count in range(1, _MOST_COMPONENTS + 1):
        size = count * (1 + d + d * (d + 1) // 2) - 1
        if size >= len(x):  # BIC is for many rows beside the numbers that are fitted
            break
        mixture = _expectation_maximisation(x, weights, count, rng)
        tried.append((size * np.log(len(x)) - 2 * mixture.log_likelihood, mixture))
        best = int(np.argmin([criterion for criterion, _ in tried]))
        if best < len(tried) - 2:
            break
    return tried[best][1] if tried else _Mixture(np.zeros(1), np.zeros((1, d)), np.eye(d)[None], 0.0)


def _expectation_maximisation(x: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator) -> _Mixture:
    centres = _spread_rows(x, count, rng)
    nearest = ((x[:, None] - centres) ** 2).sum(-1).argmin(1)
    shares = np.eye(count)[nearest]
    before = -np.inf
    for _ in range(_MOST_PASSES):
        mixture = _maximise(x, weights[:, None] * shares)
        terms = _terms(x, mixture)
        total = np.logaddexp.reduce(terms, axis=1)
        shares = np.exp(terms - total[:, None])
        after = float(weights @ total)
        if after - before < 1e-5 * len(x):
            break
        before = after
    return mixture._replace(log_likelihood=after)


def _spread_rows(x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows that are far from each other (k-means++)."""
    rows = [int(rng.integers(len(x)))]
    for _ in range(count - 1):
        distance = ((x[:, None] - x[rows]) ** 2).sum(-1).min(1) + 1e-12
        rows.append(int(rng.choice(len(x), p=distance / distance.sum())))
    return x[rows]


def _maximise(x: np.ndarray, shares: np.ndarray) -> _Mixture:
    size = shares.sum(0) + 1e-10
    means = shares.T @ x / size[:, None]
    factors = []
    for mean, column, total in zip(means, shares.T, size, strict=True):
        centred = x - mean
        covariance = (centred * column[:, None]).T @ centred / total
        factors.append(np.linalg.cholesky(covariance + _RIDGE * np.eye(x.shape[1])))
    return _Mixture(np.log(size / size.sum()), means, np.stack(factors), 0.0)


def _terms(x: np.ndarray, mixture: _Mixture) -> np.ndarray:
    """Log w_k N(x; mu_k, C_k), shape (n, k)."""
    components = zip(mixture.log_weights, mixture.means, mixture.factors, strict=True)
    return np.stack([log_weight + log_normal(x, mean, factor) for log_weight, mean, factor in components], axis=1)


def _log_density(x: np.ndarray, mixture: _Mixture) -> np.ndarray:
    return np.logaddexp.reduce(_terms(x, mixture), axis=1)
