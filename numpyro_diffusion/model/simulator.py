r"""A user's model as a simulator: draws of its unknowns theta and of what will be observed y, and log p(theta, y).

Nothing has to be observed, and what will be is named. An observed site is a ``sample`` site, whose density is the
likelihood, or a ``deterministic`` one, the output of a simulator, which has draws and no density.

Unknowns are seen in coordinates (:mod:`.simulated_sites`). With T the bijections of their supports

    log p(u, y) = log p(theta, y) + log |dT / du|.

What cannot be seen so is refused by the site's name: counts without an end, a prior that is improper, or scaled or
masked, so that draws of the model are none of the posterior's prior, a support or a mask that depends on another site,
observed or not, or on random numbers beside the sites (found by the operations that compute it, not by trial), a plate
of a part of its data, a factor, and an observed site that is not named. A density that depends on such random numbers
is none: the model is a simulator.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import block

from .._checks import expected
from .._compat.jax import origins
from .._compat.numpyro import compute_log_probs
from .._typing import Array
from ..estimates import AsDensity
from ..wrappers import find_diffusions
from .gaps import OfSeen, check_events_whole
from .simulated_sites import LatentSite, are_alike, drawn_site, latent_site, mask_of_site, observed_site
from .sites import check_plate, check_proper, check_trained, is_latent, site_log_prob
from .trace import trace_model

__all__ = ["Simulator"]

_ROWS_AT_ONCE = 1000  # draws of the model in one call
_RANDOMNESS = "random numbers of its own"  # of numpyro.prng_key(), beside its sites


class Simulator:
    """A model with its arguments, as functions of arrays. Compared by identity, so that it may be a static argument.

    Args:
        model: a NumPyro model.
        args, kwargs: its arguments; without what will be observed.
        observed: names of the sites that will be.

    Attributes:
        latent: the unknowns, in the order of the model.
        observed: in the order they are named.
        without_density: names of the observed sites that are no ``sample`` sites, or a diffusion's.

    Raises:
        ValueError: for what the module's text says is refused.
        TypeError: for a discrete site without an end, or what is no model.
    """

    def __init__(self, model: Callable, args: tuple, kwargs: Mapping[str, Any], observed: Sequence[str]) -> None:
        if not callable(model) or isinstance(model, type):
            raise TypeError(expected("a NumPyro model", repr(model), "Pass the model function itself."))
        self.model, self.args, self.kwargs = model, tuple(args), dict(kwargs)
        sites = self._trace(fill=_check)
        named = tuple(observed_site(name, sites, is_fixed=False) for name in observed)
        _check_no_other_data(sites, observed)
        latent = {name: site for name, site in sites.items() if is_latent(site) and name not in observed}
        if not latent:
            got = f"sample sites {[name for name, site in sites.items() if site['type'] == 'sample']}, all observed"
            raise ValueError(expected("a model with a latent site", got, "Name what is observed, and no more."))
        self.latent = tuple(latent_site(name, site) for name, site in latent.items())
        self.without_density = tuple(name for name in observed if not _has_density(sites[name]))
        self._values = {name: site["value"] for name, site in sites.items() if is_latent(site)}
        self._depends = self._check_fixed([site.name for site in named])
        self.observed = tuple(observed_site(name, sites, is_fixed=not self._depends[name]) for name in observed)
        self._draw = jax.jit(jax.vmap(self.draw))

    @property
    def names(self) -> list[str]:
        """Of all unknowns and all that is observed."""
        return [site.name for site in self.latent] + [site.name for site in self.observed]

    def observed_as_drawn(self) -> tuple[LatentSite, ...]:
        """What is observed in coordinates of its own, for a chain that draws it given the unknowns.

        Raises:
            ValueError: for a support that depends on another site, or has no bijection; for a mask.
            TypeError: for what is not of real numbers.
        """
        for name, on in self._depends.items():
            if on:
                cure = "Where y can be depends on theta: write the likelihood, or learn the posterior."
                raise ValueError(
                    expected(f"a support of site {name!r} that is fixed", f"one that depends on {on}", cure)
                )
        sites = self._trace()
        return tuple(drawn_site(site.name, sites[site.name]) for site in self.observed)

    def draw(self, key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Coordinates of the unknowns and values of what is observed, by site, of one run of the model."""
        sites = self._trace(rng_key=key)
        unknowns = {site.name: site.coordinates(jnp.asarray(sites[site.name]["value"])) for site in self.latent}
        return unknowns, {site.name: jnp.asarray(sites[site.name]["value"]) for site in self.observed}

    def simulate(self, rng_key: jax.Array, num_draws: int) -> dict[str, np.ndarray]:
        """So many runs, on the host: values of all unknowns and of what is observed, by site."""
        unknowns, y = self.draws(rng_key, num_draws)
        values = jax.vmap(self.values_and_log_volume)(jax.tree.map(jnp.asarray, unknowns))[0]
        return {**{name: np.asarray(value) for name, value in values.items()}, **y}

    def given(
        self, simulations: Mapping[str, Any], *, may_lack: bool = False
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What ``draws`` returns, of values by site that exist, each with the draws in front.

        Args:
            simulations: by site.
            may_lack: whether NaN in what is observed says that a number is missing.

        Raises:
            ValueError: for sites that are missing, or values of other shapes, supports or numbers of draws.
        """
        missing = [name for name in self.names if name not in simulations]
        if missing:
            raise ValueError(expected(f"simulations of the sites {self.names}", f"none of {missing}", "Pass them all."))
        unknowns = {site.name: site.given(simulations[site.name]) for site in self.latent}
        y = {site.name: site.given(simulations[site.name], may_lack=may_lack) for site in self.observed}
        counts = {len(array) for array in (*unknowns.values(), *y.values())}
        if len(counts) != 1:
            raise ValueError(expected("as many draws of every site", sorted(counts), "Draws go along the first axis."))
        return unknowns, y

    def draws(self, rng_key: jax.Array, num_draws: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """So many runs, on the host, each array with them in front."""
        parts = []
        for start in range(0, num_draws, _ROWS_AT_ONCE):
            # The last call makes more than are kept, rather than be compiled for another number.
            rows = min(_ROWS_AT_ONCE, num_draws)
            keys = jax.random.split(jax.random.fold_in(rng_key, start), rows)
            parts.append(jax.tree.map(lambda leaf: np.asarray(leaf)[: num_draws - start], self._draw(keys)))  # noqa: B023
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def values_and_log_volume(self, coordinates: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
        """Values of the unknowns by site, of coordinates of one draw, and the log of what the bijections stretch."""
        both = {site.name: site.value_and_log_volume(coordinates[site.name]) for site in self.latent}
        total = sum((log_volume for _, log_volume in both.values()), jnp.zeros(()))
        return {name: value for name, (value, _) in both.items()}, total

    def log_joint(
        self, values: Mapping[str, Array], y: Mapping[str, Array], seen: Mapping[str, Array] | None = None
    ) -> Array:
        """Log p(theta, y) of values by site, nats; of the numbers of y that are seen, by site, if some are not.

        Raises:
            ValueError: for a model without a likelihood.
        """
        self.check_likelihood()
        model = self.model if seen is None else OfSeen(self.model, seen)
        with block():
            found, _ = compute_log_probs(model, self.args, self.kwargs, {**values, **y})
        return sum(found.values(), jnp.zeros(()))

    def log_densities(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Of each sample site given values of all, by name, nats; of none that a diffusion or chance has a part in.

        Two models are the same if these are, up to rounding.
        """
        random = self._random()
        sites = self._trace(fill=lambda site: values.get(site["name"]))
        sites = {name: site for name, site in sites.items() if site["type"] == "sample" and name not in random}
        return {
            name: float(jnp.sum(site_log_prob(site))) for name, site in sites.items() if not find_diffusions(site["fn"])
        }

    def check_seen(self, seen: Mapping[str, np.ndarray]) -> None:
        """Refuse missing numbers of which the rest has no likelihood.

        Raises:
            ValueError: with the site.
        """
        sites = self._trace()
        for name, of_site in seen.items():
            if sites[name]["type"] == "sample":
                check_events_whole(name, sites[name]["fn"], of_site)

    def check_likelihood(self) -> None:
        """Refuse a model of which y has draws and no density.

        Raises:
            ValueError: with the sites.
        """
        if self.without_density:
            names = ", ".join(repr(name) for name in self.without_density)
            cure = "A simulator has draws and no density: use the amortised draws as they are, or write the likelihood."
            got = f"{names}, a deterministic site or a Diffusion, which has none"
            raise ValueError(expected("a model with a likelihood of y", got, cure))
        random = self._random()
        if random:
            cure = "Make what numpyro.prng_key() draws a sample site: its density is a part of the model's."
            raise ValueError(expected("a model with a likelihood", f"{_RANDOMNESS} in the density of {random}", cure))

    def check_alike(self, other: "Simulator") -> None:
        """Refuse a model of other unknowns than this one's, or other observations.

        Raises:
            ValueError: with what differs.
        """
        mine, others = (dict(zip(each.names, (*each.latent, *each.observed), strict=True)) for each in (self, other))
        differ = [name for name in sorted({*mine, *others}) if not are_alike(mine.get(name), others.get(name))]
        if differ:
            cure = "Another prior may have other densities, and must have the same sites, shapes, supports and masks."
            raise ValueError(expected("a model of the same unknowns and observations", f"others at {differ}", cure))

    def _trace(self, **settings: Any) -> dict[str, dict]:
        return trace_model(self.model, self.args, self.kwargs, **settings)

    def _random(self) -> list[str]:
        """The sites whose density depends on random numbers beside the sites."""

        def densities(values: dict[str, Any]) -> dict[str, Any]:
            sites = self._trace(fill=lambda site: values.get(site["name"]), rng_key=values[_RANDOMNESS])
            return {
                name: site_log_prob(site)
                for name, site in sites.items()
                if site["type"] == "sample" and not find_diffusions(site["fn"])
            }

        return [name for name, sources in self._sources(densities).items() if _RANDOMNESS in sources]

    def _sources(self, function: Callable[[dict[str, Any]], Any]) -> Any:
        """For each array of a function of the sites' values, from which of them, or from chance, it is computed."""
        values = jax.tree.map(jnp.asarray, {**self._values, _RANDOMNESS: jax.random.PRNGKey(0)})
        names, structure = sorted(values), jax.tree.structure(jax.eval_shape(function, values))
        found = [
            [name for name, is_used in zip(names, origin.inputs, strict=True) if is_used]
            for origin in origins(function, values)
        ]
        return jax.tree.unflatten(structure, found)

    def _check_fixed(self, observed: Sequence[str]) -> dict[str, list[str]]:
        """Refuse supports of unknowns and masks that are computed from values of sites or by chance.

        Returns:
            On what the supports of observed sites depend, by name.
        """

        def parts(values: dict[str, Any]) -> dict[str, dict[str, list]]:
            sites = self._trace(fill=lambda site: values.get(site["name"]), rng_key=values[_RANDOMNESS])
            found = {
                "support": {name: jax.tree.leaves(sites[name]["fn"].support) for name in self._values},
                "mask": {name: mask_of_site(sites[name]) for name in observed},
            }
            return jax.tree.map(jnp.asarray, found)

        on = {
            what: {name: sorted({source for sources in each for source in sources}) for name, each in by.items()}
            for what, by in self._sources(parts).items()
        }
        for what, name in [*(("mask", name) for name in observed), *(("support", site.name) for site in self.latent)]:
            if on[what][name]:
                cures = {
                    "support": "Draw the site from a fixed support and rescale it in the model.",
                    "mask": "Simulate with one mask, and train again for another.",
                }
                wanted = f"a {what} of site {name!r} that is fixed"
                raise ValueError(expected(wanted, f"one that depends on {on[what][name]}", cures[what]))
        return {name: on["support"].get(name, []) for name in observed}


def _check(site: dict) -> None:
    """Of a site before it is drawn: that it can be."""
    check_trained(site)
    check_proper(site)
    if site["type"] == "plate":
        check_plate(site["name"], *site["args"][:2])


def _has_density(site: dict) -> bool:
    """Whether an observed site has a likelihood."""
    if site["type"] != "sample":
        return False
    return all(isinstance(diffusion.estimator, AsDensity) for diffusion in find_diffusions(site["fn"]))


def _check_no_other_data(sites: Mapping[str, dict], observed: Sequence[str]) -> None:
    others = [n for n, s in sites.items() if s["type"] == "sample" and s["is_observed"] and n not in observed]
    if others:
        raise ValueError(
            expected(
                f"no observed site beside {list(observed)}",
                f"{others}, whose values or factors draws of the model do not know",
                "Name them in observed=, and call the model without their data.",
            )
        )
