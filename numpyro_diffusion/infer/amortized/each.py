"""The amortised posteriors of many data sets at once: drawn and weighted by one program for all."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..._checks import check_choice, check_integer_at_least, expected
from ..._typing import Array
from .correction import Corrected, correct_each, is_poor
from .parts import Bound
from .posterior import ConditionedPosterior, checked_settings
from .targets import Targets
from .weights import Data, data_set, draw_values_of_each

__all__ = ["ConditionedPosteriors", "CorrectedPosteriors"]

_Method = Literal["auto", "importance"]


class CorrectedPosteriors(Sequence[Corrected]):
    """Draws of the posteriors of the user's model for many data sets; each of them is a :class:`Corrected`.

    Attributes:
        pareto_k: of the importance weights of each, shape (n,).
        effective_sample_size: of these weights, shape (n,).
    """

    def __init__(self, each: Sequence[Corrected]) -> None:
        self._each = tuple(each)
        self.pareto_k = np.asarray([one.pareto_k for one in self._each])
        self.effective_sample_size = np.asarray([float(one.importance.effective_sample_size) for one in self._each])

    def __len__(self) -> int:
        return len(self._each)

    def __getitem__(self, index: Any) -> Any:
        return self._each[index]

    @property
    def methods(self) -> list[str]:
        """By what each was corrected."""
        return [one.method for one in self._each]

    @property
    def log_evidence(self) -> np.ndarray:
        """Log p(y) in nats, by importance weights, shape (n,); unbiased, and noisy where ``pareto_k`` is above 0.7."""
        return np.asarray([float(one.importance.log_evidence) for one in self._each])

    @property
    def log_evidence_error(self) -> np.ndarray:
        """The standard errors of ``log_evidence``, an understatement where ``pareto_k`` is above 0.5, shape (n,)."""
        return np.asarray([one.importance.log_evidence_error for one in self._each])

    def get_samples(self, num_samples: int, rng_key: jax.Array | None = None) -> dict[str, np.ndarray]:
        """Draws of equal weight of all latent sites, by site, shape (n, num_samples, site shape...).

        Args:
            num_samples: of each data set, no more than were made.
            rng_key: for the resampling of weighted draws; by default always the same ones.

        Raises:
            ValueError: for more than were made.
        """
        check_integer_at_least("num_samples", num_samples, 1, "It is a number of draws.")
        key = jax.random.key(0) if rng_key is None else rng_key
        found = []
        for index, one in enumerate(self._each):
            if one.engine is None:
                draws = one.get_samples(jax.random.fold_in(key, index), num_samples)
            else:
                draws = _evenly(one.get_samples(), num_samples)
            found.append(jax.tree.map(np.asarray, draws))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


class ConditionedPosteriors(Sequence[ConditionedPosterior]):
    """q(theta | y) for each of many y, from :meth:`AmortizedPosterior.condition_each`; ``posteriors[i]`` is one.

    Attributes:
        share_farther: for each data set the share of simulated ones that lie farther from the others than it does,
            shape (n,); 0 says that it is like none of them.
    """

    def __init__(self, targets: Targets, bounds: tuple[Bound, ...], y: Data, share_farther: np.ndarray) -> None:
        self._targets, self._bounds, self._y = targets, bounds, y
        self.share_farther = share_farther

    def __len__(self) -> int:
        return len(self.share_farther)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        bounds, y = data_set(self._bounds, self._y, position)
        return ConditionedPosterior(self._targets, bounds, y, float(self.share_farther[position]))

    def sample(self, rng_key: jax.Array, num_samples: int = 1000) -> dict[str, Array]:
        """Draws of all latent sites, in their own supports.

        Args:
            rng_key: JAX random key; data set i is drawn by ``jax.random.fold_in(rng_key, i)``.
            num_samples: of each data set.

        Returns:
            Site name -> (n, num_samples, site shape...). They are the network's: ``correct`` makes them the model's.
        """
        check_integer_at_least("num_samples", num_samples, 1, "It is the number of draws.")
        keys = jnp.stack([jax.random.split(key, num_samples) for key in self._keys(rng_key)])
        return draw_values_of_each(self._targets.own.simulator, self._bounds, keys)

    def correct(
        self,
        rng_key: jax.Array,
        method: _Method = "importance",
        *,
        model: Callable | None = None,
        model_args: tuple | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        num_samples: int = 1000,
        num_paths: int = 4,
        num_warmup: int = 500,
        num_chains: int = 4,
        progress_bar: bool = True,
    ) -> CorrectedPosteriors:
        """Draws of the posteriors of the user's own model; see :meth:`ConditionedPosterior.correct`.

        Args:
            rng_key: JAX random key; data set i is corrected by ``jax.random.fold_in(rng_key, i)``.
            method: ``"importance"``, weights on whole paths; ``"auto"``, these, and for each data set whose weights are
                not to be trusted ``"hmc"``, one data set after the other.
            model: another model of the same sites.
            model_args: its arguments; by default those of the amortised model.
            model_kwargs: its keyword arguments, likewise.
            num_samples: draws of each data set.
            num_paths: K of the weights.
            num_warmup: draws that adapt a chain.
            num_chains: of ``"hmc"``.
            progress_bar: show one over data sets.

        Raises:
            ValueError: as :meth:`ConditionedPosterior.correct`.
        """
        check_choice("method", method, _Method)
        settings = checked_settings(method, num_samples, num_paths, num_warmup, num_chains, 1, progress_bar)
        target = self._targets.of(model, model_args, model_kwargs)
        each = correct_each(target, self._bounds, self._y, self._keys(rng_key), settings)
        poor = sum(one.method == "importance" and is_poor(one.importance) for one in each)
        if poor:
            wanted = f"importance weights of all {len(each)} data sets that can be trusted"
            cure = "Look at pareto_k and effective_sample_size; train longer, or correct by method='auto'."
            warnings.warn(expected(wanted, f"{poor} that cannot", cure), stacklevel=2)
        return CorrectedPosteriors(each)

    def _keys(self, rng_key: jax.Array) -> list[jax.Array]:
        return [jax.random.fold_in(rng_key, index) for index in range(len(self))]


def _evenly(draws: Mapping[str, Array], num_samples: int) -> dict[str, Array]:
    """So many of the draws of chains."""
    count = len(next(iter(draws.values())))
    if num_samples > count:
        raise ValueError(expected(f"num_samples <= {count}, the draws of chains", num_samples, "Draw more."))
    chosen = np.linspace(0, count - 1, num_samples).round().astype(int)
    return {name: jnp.asarray(value)[chosen] for name, value in draws.items()}
