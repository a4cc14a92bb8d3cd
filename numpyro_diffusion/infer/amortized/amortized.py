r"""One network for every data set: q(theta | y) learned from draws (theta, y) of a model, and corrected afterwards.

A conditional chain (:mod:`.parts`) in coordinates in which a posterior is near standard normal (:mod:`.coordinates`) is
trained on simulations (:mod:`.train`). It answers each y by T network calls a draw. What it answers is as good as its
training. Where the model has a likelihood the draws are corrected (:mod:`.correction`), and are then those of the
model's posterior, exactly but for Monte Carlo errors that are stated.

References: Papamakarios, Murray 2016 (amortised posteriors from simulations); Sohl-Dickstein et al. 2015 (the chain).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._checks import expected
from ...model.simulator import Simulator
from .base import Amortized
from .coordinates import by_site, in_a_row
from .each import ConditionedPosteriors
from .parts import bind
from .posterior import CheckedData, ConditionedPosterior, checked_data
from .targets import Targets
from .train import Roles
from .weights import Data

__all__ = ["AmortizedPosterior"]


class AmortizedPosterior(Amortized):
    """The posterior of a model for any data set, learned from its own draws.

    Args:
        model: a NumPyro model that draws what will be observed when it is called without data. With ``sample`` sites
            for it the model has a likelihood, and draws can be corrected. With ``deterministic`` sites it is a
            simulator.
        observed: the name of the site that will be observed, or names of several.
        model_args: of the model, data left out.
        model_kwargs: of the model, data left out.
        embedding: what the network sees of y: ``networks.VectorEmbedding()``, by default; ``SetEmbedding`` for
            independent, identical data in any order, ``SeriesEmbedding``, ``ImageEmbedding``, or a Haiku function of
            standardised y with a leading axis of rows, or of a dictionary of them by site.
        num_steps: T of the chains.
        width: units of each layer of the network that draws.
        depth: its hidden layers.
        missing: the largest share of the numbers of y that a data set may lack: each simulation is trained on without
            a share of its own, from 0 to that, and ``condition`` takes NaN for what is missing. Or pass
            ``simulations`` with NaN where yours lack numbers. An embedding sees which are there as ``{name}_seen``.

    Raises:
        TypeError: for a discrete latent site without two ends; for what is no model.
        ValueError: for a site that does not exist or is observed already, an observed site that is not named, an
            improper, scaled or masked prior, a support that depends on another site, a subsampled plate.

    >>> import jax
    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> def model():
    ...     theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    ...     numpyro.sample("y", dist.Normal(theta, 0.5).to_event(1))
    >>> amortized = AmortizedPosterior(model, observed="y", num_steps=10, width=8, depth=1)
    >>> amortized = amortized.fit(jax.random.key(0), 1000, max_steps=20, progress_bar=False)
    >>> posterior = amortized.condition(jnp.array([1.0, -1.0]))
    >>> posterior.sample(jax.random.key(1), 3)["theta"].shape
    (3, 2)
    >>> amortized.condition_each(jnp.zeros((5, 2))).sample(jax.random.key(1), 3)["theta"].shape
    (5, 3, 2)
    >>> posterior.correct(jax.random.key(2), num_samples=500).method
    'importance'
    """

    def __init__(
        self,
        model: Callable,
        *,
        observed: str | Sequence[str],
        model_args: tuple = (),
        model_kwargs: Mapping[str, Any] | None = None,
        embedding: Callable[[Any], Any] | None = None,
        num_steps: int = 40,
        width: int = 128,
        depth: int = 3,
        missing: float = 0.0,
    ) -> None:
        if not 0 <= missing <= 1:
            raise ValueError(expected("missing in [0, 1]", missing, "It is a share of the numbers of a data set."))
        self._missing = float(missing)
        super().__init__(
            model,
            observed=observed,
            model_args=model_args,
            model_kwargs=model_kwargs,
            embedding=embedding,
            num_steps=num_steps,
            width=width,
            depth=depth,
        )
        self._targets = Targets(self._simulator)

    def _roles_of(self, simulator: Simulator) -> Roles:
        hidden = [site.name for site in simulator.observed if site.seen is not None]
        if self._missing and hidden:
            cure = "Leave the mask out of the model: NaN in a data set says what is missing."
            raise ValueError(expected("observed sites without a mask beside missing=", f"one at {hidden}", cure))
        return Roles(simulator.latent, simulator.observed, lambda simulations: simulations, self._missing)

    def simulate(self, rng_key: jax.Array, num_simulations: int, *, gaps: bool = False) -> dict[str, np.ndarray]:
        """Draws of all latent sites and of what is observed, by site, each with the draws in front.

        Args:
            rng_key: JAX random key.
            num_simulations: how many.
            gaps: whether data sets lack numbers as those of the training do: each a share of its own, from 0 to
                ``missing``, at random, which are NaN.
        """
        simulated = super().simulate(rng_key, num_simulations)
        if not gaps:
            return simulated
        drawn, y = (
            {site.name: simulated[site.name] for site in sites}
            for sites in (self._simulator.latent, self._simulator.observed)
        )
        return {**simulated, **self._roles.with_gaps(jax.random.fold_in(rng_key, 1), (drawn, y))[1]}

    def condition(self, y: Any) -> ConditionedPosterior:
        """The posterior of a data set; warns if none of the simulations was like it.

        Args:
            y: an array, or a dictionary of arrays by site, in the shapes and dtypes that the model draws. What a mask
                of the model hides may be NaN, and with ``missing`` what is not there is.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: for other sites or shapes, or values that are not finite.
            TypeError: for another kind of numbers.
        """
        posteriors = self._of_each([self._checked(y)])
        self._warn_of_unlike(posteriors.share_farther)
        return posteriors[0]

    def condition_each(self, y: Any) -> ConditionedPosteriors:
        """The posterior of each of many data sets; warns if more of them than by chance are like no simulation.

        Args:
            y: as of ``condition``, with an axis of data sets in front.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: for other sites or shapes, or values that are not finite; for no data set.
            TypeError: for another kind of numbers.
        """
        rows = jax.tree.map(np.asarray, dict(y) if isinstance(y, Mapping) else y)
        counts = {len(array) if array.ndim else 0 for array in jax.tree.leaves(rows)}
        if len(counts) != 1 or 0 in counts:
            cure = "Data sets go along the first axis, the same number of each site."
            raise ValueError(expected("one or more data sets", f"{sorted(counts)} of the sites", cure))
        each = [self._checked(jax.tree.map(lambda array, i=i: array[i], rows)) for i in range(counts.pop())]
        posteriors = self._of_each(each)
        self._warn_of_unlike(posteriors.share_farther)
        return posteriors

    def _checked(self, y: Any) -> CheckedData:
        self._trained()
        return checked_data(self._simulator, y, may_lack=self._missing > 0)

    def _of_each(self, checked: Sequence[CheckedData]) -> ConditionedPosteriors:
        plan, neighbours = self._trained()
        sites = self._simulator.observed
        values, seen = (jax.tree.map(lambda *leaves: np.stack(leaves), *those) for those in zip(*checked, strict=True))
        may_lack = self._missing > 0
        coded = {name: np.where(seen[name], value, np.nan) for name, value in values.items()} if may_lack else values
        codes = plan.code(in_a_row(sites, coded))
        # In the place of what is missing a number that the model draws: its density is a number, too.
        typical = by_site(sites, np.asarray(plan.code.centre))
        filled = {
            site.name: jnp.asarray(np.where(seen[site.name], values[site.name], typical[site.name].astype(site.dtype)))
            for site in sites
        }
        is_complete = all(of_site.all() for of_site in seen.values())
        data = Data(filled, None if is_complete else {name: jnp.asarray(of_site) for name, of_site in seen.items()})
        shares = neighbours.share_farther(np.asarray(codes))
        return ConditionedPosteriors(self._targets, bind(plan.parts, codes), data, shares)

    def _warn_of_unlike(self, shares: np.ndarray) -> None:
        """Warn where more data sets are farther from the simulations than all of these than chance has it."""
        _, neighbours = self._trained()
        count, by_chance = int((shares == 0).sum()), len(shares) / (len(neighbours.far) + 1)
        if count > by_chance + 3 * np.sqrt(by_chance):  # of a Poisson variable
            wanted = "y like the simulated data sets"
            many = "one" if len(shares) == 1 else f"{count} of {len(shares)}"
            got = f"{many} farther from them than each of {len(neighbours.far)} of them from the others"
            cure = "The network has seen none like it: correct the draws, and look at the model."
            warnings.warn(expected(wanted, got, cure), stacklevel=3)
