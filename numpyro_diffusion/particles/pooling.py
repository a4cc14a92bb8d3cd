r"""Islands of particles pooled into one weighted sample.

Island k of K estimates the evidence by Z_k, without bias, and stands for its particles with total weight Z_k / sum Z:
the pooled sample converges whatever the number of particles in an island. The mean of the Z_k is the estimate of the
evidence, their spread its standard error. When other unknowns were drawn from their prior, one draw for each island,
the same weights make the islands an importance sample of them (IS^2). Elements that were filtered by themselves and
share nothing are pooled by themselves.

References: Whiteley, Lee, Heine 2016 (islands); Tran et al. 2013 (IS^2).
"""

import numpy as np

from .._weights import systematic

__all__ = ["draw_particles"]


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
    log_weights = np.asarray(log_weights, np.float64).reshape(num_islands, num_particles, size)
    by_island = np.asarray(log_evidence, np.float64).reshape(num_islands, -1)
    together = by_island.shape[1] == 1
    islands = np.empty((num_draws, size), int)
    particles = np.empty((num_draws, size), int)
    for element in range(size):
        if element == 0 or not together:
            # Sorted by island: each is visited once.
            order = np.sort(systematic(rng, by_island[:, 0 if together else element], num_draws))
        shuffle = slice(None) if together else rng.permutation(num_draws)
        found = np.empty(num_draws, int)
        for island, count in zip(*np.unique(order, return_counts=True), strict=True):
            chosen = systematic(rng, log_weights[island, :, element], int(count))
            found[order == island] = rng.permutation(chosen)
        islands[:, element], particles[:, element] = order[shuffle], found[shuffle]
    shuffle = rng.permutation(num_draws)
    shape = (num_draws, *elements)
    return islands[shuffle].reshape(shape), particles[shuffle].reshape(shape)
