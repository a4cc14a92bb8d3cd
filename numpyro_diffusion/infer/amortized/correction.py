r"""From amortised draws to draws of the user's own posterior.

    "importance"    weights on whole paths (:mod:`.weights`): one look at each draw, log evidence without bias
    "hmc"           DiffusionHMC in the chain's noises, begun at draws resampled by their weights
    "tempered"      TemperedSMC in the chain's noises: log evidence by islands, modes that the chain has but rarely
    "auto"          importance; where Pareto k-hat is above 0.7, or fewer than 50 draws are left of all, hmc

All three have the same target, the posterior of the model, with any network. In the noises z of the amortised chain it
is N(z; 0, I) w(z), a model of standard normal noises and one factor, which the engines take as any other. What no
weight shows is a mode that the amortised chain never visits.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.diagnostics import summary as numpyro_summary
from numpyro.infer import MCMC
from tqdm.auto import tqdm

from ..._checks import expected, on_host
from ..._typing import Array
from ..._weights import host_generator, systematic
from ...noise.importance import TRUSTED, ImportanceResult, importance_result, warn_of_weights
from ..islands import table
from ..tempered import TemperedSMC
from .parts import Bound
from .targets import Target
from .weights import Data, data_set, draw_noise, weighted_values, weighted_values_of_each

__all__ = ["Corrected", "Method", "Settings", "correct", "correct_each", "is_poor"]

Method = Literal["auto", "importance", "hmc", "tempered"]

_FEWEST_EFFECTIVE = 50.0
_LARGEST_R_HAT = 1.05
_CURES = "train longer or on more simulations, or correct by method='hmc' or 'tempered'"


@dataclasses.dataclass(frozen=True, eq=False)
class Corrected:
    """Draws of the posterior of the user's model.

    Attributes:
        method: which was taken: ``"importance"``, ``"hmc"`` or ``"tempered"``.
        importance: the weighted draws, which the other methods begin with; ``efficiency_interval`` says what they are
            worth.
        engine: the finished ``MCMC`` or ``TemperedSMC``; None for importance weights.
    """

    method: Method
    importance: ImportanceResult
    engine: MCMC | TemperedSMC | None = None

    @property
    def pareto_k(self) -> float:
        """Of the importance weights."""
        return self.importance.pareto_k

    @property
    def log_evidence(self) -> float:
        """Log p(y) in nats.

        Raises:
            AttributeError: after Hamiltonian moves, which come where weights are not to be trusted.
        """
        return float(self._with_evidence().log_evidence)

    @property
    def log_evidence_error(self) -> float:
        """The standard error of ``log_evidence``."""
        return float(self._with_evidence().log_evidence_error)

    @property
    def largest_r_hat(self) -> float:
        """Of all numbers of all sites, by method ``"hmc"``.

        Raises:
            AttributeError: by another method.
        """
        if not isinstance(self.engine, MCMC):
            cure = "Look at pareto_k, or at the islands."
            raise AttributeError(expected("chains, by method 'hmc'", f"method {self.method!r}", cure))
        found = numpyro_summary(self._of_sites(self.engine.get_samples(group_by_chain=True)))
        return float(np.nanmax([np.max(site["r_hat"]) for site in found.values()]))

    def get_samples(self, rng_key: jax.Array | None = None, num_samples: int | None = None) -> dict[str, Array]:
        """Draws of equal weight of all latent sites, in their own supports.

        Args:
            rng_key: for the resampling of weighted draws; by default always the same ones.
            num_samples: how many of weighted draws; by default as many as were made.

        Raises:
            ValueError: for ``num_samples`` of draws of ``"hmc"``, which have equal weights already.
        """
        if isinstance(self.engine, MCMC):
            if num_samples is not None:
                cure = "They have equal weights: index them."
                raise ValueError(expected("no num_samples for draws of 'hmc'", num_samples, cure))
            return self._of_sites(self.engine.get_samples())
        engine = self.importance if self.engine is None else self.engine
        return self._of_sites(engine.get_samples(rng_key, num_samples))

    def summary(self) -> str:
        """What was done, what it is worth, and the posterior's moments, in words."""
        weights = self.importance
        low, high = weights.efficiency_interval
        count = weights.log_weights.size
        told = [
            f"corrected by {self.method}",
            f"importance weights: k-hat {weights.pareto_k:.2f}",
            f"effective size {float(weights.effective_sample_size):.0f} of {count}, per draw {low:.3f} to {high:.3f}",
        ]
        if isinstance(self.engine, MCMC):
            told.append(f"largest R-hat {self.largest_r_hat:.3f}")
        else:
            told.append(f"log evidence {self.log_evidence:.3f} +- {self.log_evidence_error:.3f} nats")
        return "\n".join([*told, table(self.get_samples())])

    def _with_evidence(self) -> ImportanceResult | TemperedSMC:
        if isinstance(self.engine, MCMC):
            cure = "Correct by method='tempered', or train until k-hat is below 0.7."
            raise AttributeError(expected("a method that gives the evidence", "'hmc'", cure))
        return self.importance if self.engine is None else self.engine

    def _of_sites(self, draws: dict[str, Array]) -> dict[str, Array]:
        return {name: draws[name] for name in self.importance.samples}


class Settings(NamedTuple):
    """How draws are corrected.

    Attributes:
        method: see the module's text.
        num_samples: draws, of chains all together.
        num_paths: K of the weights.
        num_warmup: draws that adapt a chain.
        num_chains: of hmc.
        num_islands: of tempered.
        progress_bar: show one.
    """

    method: Method
    num_samples: int
    num_paths: int
    num_warmup: int
    num_chains: int
    num_islands: int
    progress_bar: bool


def correct(target: Target, bounds: tuple[Bound, ...], y: Data, rng_key: jax.Array, settings: Settings) -> Corrected:
    """Draws of a posterior.

    Args:
        target: the posterior that is wanted.
        bounds: the amortised posterior's parts given y.
        y: the data.
        rng_key: randomness.
        settings: see there.
    """
    _check(target, bounds, y, settings)
    keys = _Keys.of(rng_key, settings)
    samples, log_weights = weighted_values(target.simulator, bounds, y, keys.draws, settings.num_paths)
    result = importance_result(samples, log_weights, None)
    corrected = _followed(target, bounds, y, keys, result, settings)
    if corrected.method == "importance":
        _warn_of_poor(result)
    elif corrected.method == "hmc" and settings.num_chains > 1 and not corrected.largest_r_hat <= _LARGEST_R_HAT:
        cure = "The chains disagree: draw more, or use method='tempered', which weighs modes that are far apart."
        warnings.warn(
            expected(f"R-hat <= {_LARGEST_R_HAT} of all sites", f"{corrected.largest_r_hat:.3f}", cure), stacklevel=3
        )
    return corrected


def correct_each(
    target: Target, bounds: tuple[Bound, ...], y: Data, keys: Sequence[jax.Array], settings: Settings
) -> list[Corrected]:
    """Draws of the posteriors of several data sets, all weighted at once; those that need moves one after the other.

    Args:
        target: as of :func:`correct`.
        bounds: of the data sets, which lead.
        y: the data sets.
        keys: randomness of each.
        settings: see there.
    """
    _check(target, bounds, y, settings)
    keys_of = [_Keys.of(key, settings) for key in keys]
    stacked = jnp.stack([each.draws for each in keys_of])
    samples, log_weights = weighted_values_of_each(target.simulator, bounds, y, stacked, settings.num_paths)
    samples, log_weights = jax.tree.map(np.asarray, (samples, log_weights))
    found = []
    for index, each in enumerate(tqdm(keys_of, desc="data sets", disable=not settings.progress_bar)):
        mine = {name: jnp.asarray(values[index]) for name, values in samples.items()}
        result = importance_result(mine, jnp.asarray(log_weights[index]), None)
        bound, data = data_set(bounds, y, index)
        found.append(_followed(target, bound, data, each, result, settings._replace(progress_bar=False)))
    return found


def is_poor(result: ImportanceResult) -> bool:
    """Whether weights are not to be trusted."""
    return result.pareto_k > TRUSTED or float(result.effective_sample_size) < _FEWEST_EFFECTIVE


class _Keys(NamedTuple):
    """Of the draws that are weighted, of where chains start, and of an engine."""

    draws: Array
    start: jax.Array
    engine: jax.Array

    @classmethod
    def of(cls, rng_key: jax.Array, settings: Settings) -> "_Keys":
        key_draws, key_start, key_engine = jax.random.split(rng_key, 3)
        return cls(jax.random.split(key_draws, settings.num_samples), key_start, key_engine)


def _check(target: Target, bounds: tuple[Bound, ...], y: Data, settings: Settings) -> None:
    """Refuse a model without a likelihood of what is seen, and moves of discrete sites."""
    target.simulator.check_likelihood()
    if y.seen is not None:
        target.simulator.check_seen({name: np.asarray(seen) for name, seen in y.seen.items()})
    discrete, method = _discrete(bounds), settings.method
    if discrete and method in ("hmc", "tempered"):
        cure = "Bits and classes are no function of normal noises: use method='importance', or sum them out."
        raise ValueError(expected(f"real sites alone for method={method!r}", f"discrete sites {discrete}", cure))


def _followed(
    target: Target, bounds: tuple[Bound, ...], y: Data, keys: _Keys, result: ImportanceResult, settings: Settings
) -> Corrected:
    """The weighted draws, or what the method does where they are not to be trusted."""
    method, num_chains = settings.method, settings.num_chains
    if method == "importance" or (method == "auto" and (_discrete(bounds) or not is_poor(result))):
        return Corrected("importance", result)
    if method == "tempered":
        num_islands = settings.num_islands
        smc = target.tempered(
            bounds[0],
            y,
            keys.engine,
            num_particles=max(2, settings.num_samples // num_islands),
            num_islands=num_islands,
            progress_bar=settings.progress_bar,
        )
        return Corrected("tempered", result, smc)
    chosen = systematic(host_generator(keys.start), on_host(result.log_weights, np.float64), num_chains)
    mcmc = target.hmc(
        bounds[0],
        y,
        keys.engine,
        jnp.stack([_noise_of(bounds[0], keys.draws[index]) for index in chosen]),
        num_warmup=settings.num_warmup,
        num_samples=-(-settings.num_samples // num_chains),
        num_chains=num_chains,
        progress_bar=settings.progress_bar,
    )
    return Corrected("hmc", result, mcmc)


def _discrete(bounds: tuple[Bound, ...]) -> list[str]:
    return [name for bound in bounds if bound.part.kernel.is_discrete for name, _ in bound.part.sites]


def _noise_of(bound: Bound, key: Array) -> Array:
    """The noises of the draw of ``weighted_values`` that a key made."""
    return draw_noise(jax.random.fold_in(key, 0), bound.chain(bound.embedded[:0]))


def _warn_of_poor(result: ImportanceResult) -> None:
    warn_of_weights(result, _CURES)
    size = float(result.effective_sample_size)
    if result.pareto_k <= TRUSTED and size < _FEWEST_EFFECTIVE:
        wanted = f"an effective size of {_FEWEST_EFFECTIVE:.0f} draws or more"
        cure = f"Draw more; or {_CURES}."
        warnings.warn(expected(wanted, f"{size:.1f} of {result.log_weights.size}", cure), stacklevel=4)
