"""What engines that run islands of particles share: how islands are run, and the last result, read from the engine."""

import abc
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from tqdm.auto import tqdm

from .._checks import check_integer_at_least, expected
from .._placement import Placement
from .._typing import Array, PyTree

__all__ = ["IslandEngine"]

Result = TypeVar("Result")


class IslandEngine(abc.ABC, Generic[Result]):
    """Base of the engines; a subclass gives ``run``, which keeps its result in ``_result``.

    Args:
        model: a NumPyro model.
        num_particles: N in each island, >= 2.
        num_islands: K independent runs.
        progress_bar: show one while islands run in batches.
        mesh: whose devices divide the islands among them.

    Raises:
        TypeError: for a model that cannot be called.
        ValueError: for numbers out of range.
    """

    def __init__(
        self,
        model: Callable,
        num_particles: int,
        num_islands: int,
        progress_bar: bool,
        mesh: jax.sharding.Mesh | None,
    ) -> None:
        if not callable(model) or isinstance(model, type):
            raise TypeError(expected("a NumPyro model", repr(model), "Pass the model function itself."))
        self.model = model
        self.num_particles = check_integer_at_least(
            "num_particles", num_particles, 2, "One particle has nothing to be compared with; take hundreds."
        )
        self.num_islands = check_integer_at_least("num_islands", num_islands, 1, "Take 4 or so for standard errors.")
        self.progress_bar = progress_bar
        self._place = Placement(mesh)
        self._place.check_divisible("num_islands", num_islands)
        self._result: Result | None = None

    @abc.abstractmethod
    def run(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> Result:
        """Run the model's islands at these arguments."""

    @property
    @abc.abstractmethod
    def arguments(self) -> tuple[tuple, dict[str, Any]]:
        """Positional and keyword arguments of the last run."""

    @property
    def result(self) -> Result:
        """What the last ``run`` found."""
        if self._result is None:
            raise RuntimeError(expected("a finished run", "none", "Call run(rng_key, *model_arguments) first."))
        return self._result

    @property
    def _last(self) -> Any:
        return self.result

    @property
    def log_evidence(self) -> float:
        """Of the result: log p(y) in nats."""
        return self._last.log_evidence

    @property
    def log_evidence_error(self) -> float:
        """Of the result: the standard error of ``log_evidence``."""
        return self._last.log_evidence_error

    @property
    def effective_sizes(self) -> np.ndarray:
        """Of the result: by island and step, before resampling."""
        return self._last.effective_sizes

    @property
    def min_ess(self) -> float:
        """Of the result: the smallest effective size among islands that carry weight."""
        return self._last.min_ess

    def get_samples(self, rng_key: jax.Array | None = None, num_samples: int | None = None) -> dict[str, Array]:
        """Equally weighted draws: ``get_samples`` of the result."""
        return self._last.get_samples(rng_key, num_samples)

    def get_weighted_samples(self) -> tuple[dict[str, Array], Array]:
        """All particles with their weights: ``get_weighted_samples`` of the result."""
        return self._last.get_weighted_samples()

    def print_summary(self) -> None:
        """Print evidence, effective sizes and the posterior's moments."""
        print(self._last.summary())

    def _run_in_batches(self, islands: Callable[..., PyTree], keys: jax.Array, width: int, *whole: PyTree) -> PyTree:
        """All islands, on the host in the end.

        Args:
            islands: compiled, of keys and what all islands share, to what leads with the keys' axis.
            keys: one for each island.
            width: how many islands may run at once on a device.
            *whole: what all islands share.
        """
        batch = min(self.num_islands // self._place.num_devices, width) * self._place.num_devices
        whole = self._place.replicate(whole)
        parts = []
        starts = range(0, self.num_islands, batch)
        for start in tqdm(starts, desc="islands", disable=not self.progress_bar or len(starts) == 1):
            # The last batch begins earlier rather than be compiled for another size.
            first = min(start, self.num_islands - batch)
            batch_keys = self._place.replicate(keys[first : first + batch])
            part = self._place.gather(islands(batch_keys, *whole))
            parts.append(jax.tree.map(lambda leaf, skip=start - first: leaf[skip:], part))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
