r"""Islands of particles pooled into one weighted sample.

Island k of K estimates the evidence by Z_k, without bias, and stands for its particles with total weight Z_k / sum Z:
the pooled sample converges whatever the number of particles in an island. The mean of the Z_k is the estimate of the
evidence, their spread its standard error. When other unknowns were drawn from their prior, one draw for each island,
the same weights make the islands an importance sample of them (IS^2). Elements that were filtered by themselves and
share nothing are pooled by themselves.

References: Whiteley, Lee, Heine 2016 (islands); Tran et al. 2013 (IS^2).
"""

import jax
import numpy as np

__all__ = ["draw_particles", "generator", "log_mean_and_error"]


def log_mean_and_error(log_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The log of the mean over axis 0, and its standard error (delta method), NaN for one value."""
    log_values = np.asarray(log_values, np.float64)
    top = log_values.max(axis=0)
    scaled = np.exp(log_values - np.where(np.isfinite(top), top, 0.0))
    mean = scaled.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mean = np.log(mean) + top
        if len(log_values) == 1:
            return np.asarray(log_mean), np.full_like(log_mean, np.nan)
        error = scaled.std(axis=0, ddof=1) / mean / np.sqrt(len(log_values))
    return np.asarray(log_mean), np.asarray(error)


def generator(key: jax.Array) -> np.random.Generator:
    """NumPy's randomness from a JAX key: what is drawn on the host needs no compiling for each number of draws."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


def draw_particles(
    rng: np.random.Generator, log_weights: np.ndarray, log_evidence: np.ndarray, num_draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Equally weighted draws: which island and which of its particles, for each element.

    Args:
        rng: randomness.
        log_weights: (K, N, E...).
        log_evidence: (K,) when an island is drawn for all elements together, (K, E...) when for each by itself.
        num_draws: how many.

    Returns:
        Two integer arrays of shape (num_draws, E...).
    """
    num_islands, num_particles, *elements = log_weights.shape
    size = int(np.prod(elements))
    weights = _normalised(log_weights.reshape(num_islands, num_particles, size), axis=1)
    by_island = _normalised(np.asarray(log_evidence, np.float64).reshape(num_islands, -1), axis=0)
    together = by_island.shape[1] == 1
    islands = np.empty((num_draws, size), int)
    particles = np.empty((num_draws, size), int)
    for element in range(size):
        if element == 0 or not together:
            # Sorted by island: each is visited once.
            order = np.sort(_systematic(rng, by_island[:, 0 if together else element], num_draws))
        shuffle = slice(None) if together else rng.permutation(num_draws)
        found = np.empty(num_draws, int)
        for island, count in zip(*np.unique(order, return_counts=True), strict=True):
            chosen = _systematic(rng, weights[island, :, element], int(count))
            found[order == island] = rng.permutation(chosen)
        islands[:, element], particles[:, element] = order[shuffle], found[shuffle]
    shuffle = rng.permutation(num_draws)
    shape = (num_draws, *elements)
    return islands[shuffle].reshape(shape), particles[shuffle].reshape(shape)


def _systematic(rng: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    cumulative = np.cumsum(weights)
    points = (np.arange(count) + rng.uniform()) / count * cumulative[-1]
    return np.minimum(np.searchsorted(cumulative, points, side="right"), len(weights) - 1)


def _normalised(log_weights: np.ndarray, axis: int) -> np.ndarray:
    """Weights that sum to one in float64; equal ones where all are zero, which only happens in islands of no weight."""
    log_weights = np.asarray(log_weights, np.float64)
    top = log_weights.max(axis=axis, keepdims=True)
    weights = np.where(np.isfinite(top), np.exp(log_weights - np.where(np.isfinite(top), top, 0.0)), 1.0)
    return weights / weights.sum(axis=axis, keepdims=True)
