r"""What a run of islands found.

Island k of K estimates the evidence by Z_k, without bias, and stands for its particles with total weight Z_k / sum Z:
the pooled sample converges whatever the number of particles in an island. The mean of the Z_k is the estimate of the
evidence, their spread its standard error. When other unknowns were drawn from their prior, one draw for each island,
the same weights make the islands an importance sample of them (IS^2). Elements that were filtered by themselves and
share nothing are pooled by themselves.

References: Whiteley, Lee, Heine 2016 (islands); Tran et al. 2013 (IS^2).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_integer_at_least, on_host
from .._typing import Array
from .._weights import host_generator, log_mean_and_error, log_normalised, normalised, systematic
from ..model.split import SplitModel
from ..particles.filter import Cloud
from .islands import check_weights, report, table, warn

__all__ = ["SMCResult", "draw_particles", "take"]


class SMCResult(NamedTuple):
    """All islands of one run: a pytree of arrays, K islands of N particles.

    After ``jax.vmap`` over data sets take one of them by ``jax.tree.map(lambda leaf: leaf[i], result)``.

    Attributes:
        split: the model with its arguments.
        cloud: particles, each array leading with K.
        others: values of other latent sites, one for each island, (K, site shape...).
        shared: log r's shared term less the density at which ``others`` were drawn, (K,).
        rng_key: from which draws are derived.
    """

    split: SplitModel
    cloud: Cloud
    others: dict[str, Any]
    shared: Any
    rng_key: jax.Array

    @property
    def num_particles(self) -> int:
        """N."""
        return self.cloud.log_weights.shape[-1 - len(self.split.element_shape)]

    @property
    def islands_differ(self) -> bool:
        """Whether each island has its own draw of other sites."""
        return bool(self.others)

    @property
    def log_evidence(self) -> float:
        """Log p(y) in nats, of all elements together; with ``condition``-ed sites their prior is in it."""
        return float(self._evidence()[0])

    @property
    def log_evidence_error(self) -> float:
        """The standard error of ``log_evidence`` over islands; NaN for one island."""
        return float(self._evidence()[1])

    @property
    def log_evidence_by_element(self) -> np.ndarray:
        """Shape E; equal to ``log_evidence`` up to the shared terms when E is ()."""
        return log_mean_and_error(on_host(self.cloud.log_evidence))[0]

    @property
    def effective_sizes(self) -> np.ndarray:
        """Shape (K, T + 1, E...), by level, before resampling."""
        return on_host(self.cloud.effective_sizes)

    @property
    def min_ess(self) -> float:
        """The smallest effective size among islands that carry weight."""
        return self.smallest[0]

    @property
    def smallest(self) -> tuple[float, int]:
        """The smallest effective size among islands that carry weight, and its level."""
        sizes = self.effective_sizes[self.weights > 0.1 / len(self.shared)]
        return float(sizes.min()), int(np.argwhere(sizes == sizes.min())[0][1])

    @property
    def weights(self) -> np.ndarray:
        """The islands' weights, summing to one; equal where elements are pooled by themselves."""
        if not self.islands_differ:
            return np.full(len(self.shared), 1 / len(self.shared))
        return normalised(self.log_evidence_by_island())

    @property
    def elements_reason(self) -> str:
        """How a plate was filtered, and why."""
        how = f"element by element, {self.split.element_shape}" if self.split.element_shape else "jointly"
        return f"{how}: {self.split.reason}"

    def log_evidence_by_island(self) -> np.ndarray:
        """Of all elements together, shape (K,), nats."""
        log_evidence = on_host(self.cloud.log_evidence, np.float64)
        return log_evidence.reshape(len(log_evidence), -1).sum(1) + on_host(self.shared)

    def check(self) -> None:
        """Refuse a run without an answer, and warn of what makes its draws unreliable.

        Raises:
            ValueError: if a weight or a particle with a weight is NaN or infinite, or if for some element all particles
                of all islands have weight zero; with the level and what it means.
        """
        log_evidence = on_host(self.cloud.log_evidence)
        check_weights(self)
        warn(self, float(np.max(log_mean_and_error(log_evidence)[1])))

    def summary(self) -> str:
        """Evidence, effective sizes and the posterior's moments, in words."""
        return f"{report(self)}\n{table(self.get_samples())}"

    def get_samples(self, rng_key: jax.Array | None = None, num_samples: int | None = None) -> dict[str, Array]:
        """Equally weighted draws of all latent and deterministic sites.

        Args:
            rng_key: for the resampling; by default derived from the key of the run, always the same draws.
            num_samples: how many; by default as many as there are particles. No more than that is worth having.

        Returns:
            Site name -> (num_samples, site shape...); with ``keep_paths`` also ``<site>_path``,
            (num_samples, T + 1, state shape...). Sites are in the model's units; a path's states are the chain's.
        """
        count = len(self.shared) * self.num_particles if num_samples is None else num_samples
        count = check_integer_at_least("num_samples", count, 1, "It is the number of draws.")
        by_element = bool(self.split.element_shape) and not self.islands_differ
        evidence = on_host(self.cloud.log_evidence) if by_element else self.log_evidence_by_island()
        rng = host_generator(self.rng_key if rng_key is None else rng_key)
        islands, particles = draw_particles(rng, on_host(self.cloud.log_weights), evidence, count)
        samples: dict[str, Any] = {name: take(x, islands, particles) for name, x in self.cloud.x.items()}
        first_island = islands.reshape(count, -1)[:, 0]
        samples |= {name: on_host(value)[first_island] for name, value in self.others.items()}
        if self.split.has_outputs:
            samples |= _outputs(self.split, samples)
        if self.cloud.levels is not None:
            samples |= self._paths(islands, particles)
        return {name: jnp.asarray(value) for name, value in samples.items()}

    def get_weighted_samples(self) -> tuple[dict[str, Array], Array]:
        """All particles with their weights.

        Returns:
            Site name -> (K N, site shape...), and normalised log weights, (K N, E...).
        """
        evidence = on_host(self.cloud.log_evidence)
        if self.islands_differ or not self.split.element_shape:
            evidence = np.reshape(self.log_evidence_by_island(), (-1,) + (1,) * (evidence.ndim - 1))
        within = log_normalised(on_host(self.cloud.log_weights), axis=1)
        log_weights = within + np.expand_dims(log_normalised(evidence, axis=0), 1)
        flat = lambda x: jnp.asarray(np.reshape(x, (-1, *x.shape[2:])))  # noqa: E731
        values = {name: flat(x) for name, x in self.cloud.x.items()}
        values |= {n: jnp.repeat(jnp.asarray(v), self.num_particles, axis=0) for n, v in self.others.items()}
        if any(site.is_transformed for site in self.split.sites):
            outputs = _outputs(self.split, values)
            values = {name: outputs.get(name, value) for name, value in values.items()}
        return values, flat(log_weights)

    def _evidence(self) -> tuple[Any, Any]:
        if self.islands_differ or not self.split.element_shape:
            return log_mean_and_error(self.log_evidence_by_island())
        by_element, errors = log_mean_and_error(on_host(self.cloud.log_evidence))
        return by_element.sum() + on_host(self.shared)[0], np.sqrt((errors**2).sum())

    def _paths(self, islands: np.ndarray, particles: np.ndarray) -> dict[str, np.ndarray]:
        levels: Any = self.cloud.levels
        ancestors: Any = self.cloud.ancestors
        at = particles
        states = {name: [take(x, islands, at)] for name, x in self.cloud.x.items()}
        for step in range(self.split.num_steps):
            at = take(ancestors[:, step], islands, at)
            for name in states:
                states[name].append(take(levels[name][:, step], islands, at))
        return {
            f"{site.name}_path": np.stack(states[site.name][: site.num_steps + 1], axis=1) for site in self.split.sites
        }


@jax.jit
def _outputs(split: SplitModel, samples: dict[str, Array]) -> dict[str, Array]:
    return jax.vmap(split.outputs)(samples)


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


def take(x: Any, islands: np.ndarray, particles: np.ndarray) -> np.ndarray:
    """X of shape (K, N, E..., rest...) at (draws, E...)."""
    elements = np.indices(islands.shape)[1:]
    return np.asarray(x)[(islands, particles, *elements)]
