r"""A user's model as a simulator: draws of its unknowns theta and of what will be observed y, and log p(theta, y).

Nothing has to be observed, and what will be is named. An observed site is a ``sample`` site, whose density is the
likelihood, or a ``deterministic`` one, the output of a simulator, which has draws and no density.

Every real unknown is seen through the bijection u = T^{-1}(theta) of its support, flattened. Then

    log p(u, y) = log p(theta, y) + log |dT / du|.

Bits and classes are seen as integers 0..K-1. What cannot be seen so is refused by the site's name: counts without an
end, a prior that is improper, or scaled or masked, so that draws of the model are none of the posterior's prior, a
support that depends on another site (found by the operations that compute it, not by trial), a plate of a part of its
data, a factor, and an observed site that is not named.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform
from numpyro.handlers import block

from .._checks import expected
from .._compat.numpyro import compute_log_probs, eval_provenance
from .._typing import Array, Shape
from ..wrappers import is_masked, unmask
from .sites import check_plate, check_proper, check_trained, is_latent
from .trace import trace_model

__all__ = ["LatentSite", "ObservedSite", "Simulator"]

_ROWS_AT_ONCE = 1000  # draws of the model in one call


@dataclasses.dataclass(frozen=True, eq=False)
class LatentSite:
    """One unknown.

    Attributes:
        name: of the site.
        shape: of its value.
        size: of its coordinates: unconstrained numbers, or integers.
        transform: from unconstrained numbers to values; None for bits and classes.
        unconstrained_shape: what the transform takes.
        num_states: K of bits and classes; None for real numbers.
        first: the value that is state 0.
        dtype: of its value.
    """

    name: str
    shape: Shape
    size: int
    transform: Transform | None
    unconstrained_shape: Shape
    num_states: int | None
    first: int
    dtype: np.dtype

    def coordinates(self, value: Array) -> Array:
        """Of one value, shape (size,)."""
        if self.transform is None:
            return (jnp.asarray(value).astype(int) - self.first).reshape(-1)
        return self.transform.inv(value).reshape(-1)

    def value_and_log_volume(self, coordinates: Array) -> tuple[Array, Array]:
        """The value of coordinates of shape (size,), and log |dT / du|, nats: 0 for bits and classes."""
        if self.transform is None:
            return (coordinates + self.first).reshape(self.shape).astype(self.dtype), jnp.zeros(())
        u = coordinates.reshape(self.unconstrained_shape)
        value = self.transform(u)
        return value, jnp.sum(self.transform.log_abs_det_jacobian(u, value))


@dataclasses.dataclass(frozen=True, eq=False)
class ObservedSite:
    """What will be observed at one site.

    Attributes:
        name: of the site.
        shape: of its value.
        dtype: of its value.
        seen: booleans of that shape, False behind a mask; None where all is seen.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    seen: np.ndarray | None


class Simulator:
    """A model with its arguments, as functions of arrays. Compared by identity, so that it may be a static argument.

    Args:
        model: a NumPyro model.
        args, kwargs: its arguments; without what will be observed.
        observed: names of the sites that will be.

    Attributes:
        latent: the unknowns, in the order of the model.
        observed: in the order they are named.
        without_density: names of the observed sites that are no ``sample`` sites.

    Raises:
        ValueError: for what the module's text says is refused.
        TypeError: for a discrete site without an end, or what is no model.
    """

    def __init__(self, model: Callable, args: tuple, kwargs: Mapping[str, Any], observed: Sequence[str]) -> None:
        if not callable(model) or isinstance(model, type):
            raise TypeError(expected("a NumPyro model", repr(model), "Pass the model function itself."))
        self.model, self.args, self.kwargs = model, tuple(args), dict(kwargs)
        sites = self._trace(fill=_check)
        self.observed = tuple(_observed(name, sites) for name in observed)
        _check_no_other_data(sites, observed)
        latent = {name: site for name, site in sites.items() if is_latent(site) and name not in observed}
        if not latent:
            got = f"sample sites {[name for name, site in sites.items() if site['type'] == 'sample']}, all observed"
            raise ValueError(expected("a model with a latent site", got, "Name what is observed, and no more."))
        self.latent = tuple(_latent(name, site) for name, site in latent.items())
        self.without_density = tuple(name for name in observed if sites[name]["type"] != "sample")
        self._check_fixed(latent)
        self._draw = jax.jit(jax.vmap(self.draw))

    @property
    def names(self) -> list[str]:
        """Of all unknowns and all that is observed."""
        return [site.name for site in self.latent] + [site.name for site in self.observed]

    def draw(self, key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Coordinates of the unknowns and values of what is observed, by site, of one run of the model."""
        sites = self._trace(rng_key=key)
        unknowns = {site.name: site.coordinates(sites[site.name]["value"]) for site in self.latent}
        return unknowns, {site.name: jnp.asarray(sites[site.name]["value"]) for site in self.observed}

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

    def log_joint(self, values: Mapping[str, Array], y: Mapping[str, Array]) -> Array:
        """Log p(theta, y) of values by site, nats.

        Raises:
            ValueError: for a model without a likelihood.
        """
        self.check_likelihood()
        with block():
            found, _ = compute_log_probs(self.model, self.args, self.kwargs, {**values, **y})
        return sum(found.values(), jnp.zeros(()))

    def check_likelihood(self) -> None:
        """Refuse a model of which y has draws and no density.

        Raises:
            ValueError: with the sites.
        """
        if self.without_density:
            names = ", ".join(repr(name) for name in self.without_density)
            cure = "A simulator has draws and no density: use the amortised draws as they are, or write the likelihood."
            raise ValueError(expected("a model with a likelihood of y", f"the deterministic site {names}", cure))

    def check_alike(self, other: "Simulator") -> None:
        """Refuse a model of other unknowns than this one's, or other observations.

        Raises:
            ValueError: with what differs.
        """
        mine, others = (dict(zip(each.names, (*each.latent, *each.observed), strict=True)) for each in (self, other))
        differ = [name for name in sorted({*mine, *others}) if not _are_alike(mine.get(name), others.get(name))]
        if differ:
            cure = "Another prior may have other densities, and must have the same sites, shapes and supports."
            raise ValueError(expected("a model of the same unknowns and observations", f"others at {differ}", cure))

    def _trace(self, **settings: Any) -> dict[str, dict]:
        return trace_model(self.model, self.args, self.kwargs, **settings)

    def _check_fixed(self, latent: Mapping[str, dict]) -> None:
        """Refuse supports and masks that are computed from the value of a site."""

        def parts(**values: Any) -> dict[str, list]:
            sites = self._trace(fill=lambda site: values.get(site["name"]))
            supports = {name: jax.tree.leaves(sites[name]["fn"].support) for name in latent}
            masks = {site.name: _mask_leaves(sites[site.name]) for site in self.observed}
            return {name: [jnp.asarray(leaf) for leaf in leaves] for name, leaves in {**supports, **masks}.items()}

        values = {name: site["value"] for name, site in latent.items()}
        found = eval_provenance(parts, **values)
        for name, sources in found.items():
            on = sorted(set().union(*sources)) if sources else []
            if on:
                what = "support" if name in latent else "mask"
                cure = "Draw the site from a fixed support and rescale it in the model."
                raise ValueError(
                    expected(f"a {what} of site {name!r} that is fixed", f"one that depends on {on}", cure)
                )


def _check(site: dict) -> None:
    """Of a site before it is drawn: that it can be."""
    check_trained(site)
    check_proper(site)
    if site["type"] == "plate":
        check_plate(site["name"], *site["args"][:2])


def _latent(name: str, site: dict) -> LatentSite:
    fn, value = site["fn"], jnp.asarray(site["value"])
    if site["scale"] is not None or is_masked(fn):
        got = "a mask" if site["scale"] is None else f"scale {site['scale']}"
        cure = "Draws of the model would not be those of its density: weigh the likelihood, not the prior."
        raise ValueError(expected(f"a prior of latent site {name!r} as it is", got, cure))
    support, shape = fn.support, value.shape
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    states = _states_of(name, support)
    if states is not None:
        return LatentSite(name, shape, math.prod(shape), None, shape, *states, value.dtype)
    transform = biject_to(fn.support)
    unconstrained = jax.eval_shape(transform.inv, value).shape
    return LatentSite(name, shape, math.prod(unconstrained), transform, unconstrained, None, 0, value.dtype)


def _states_of(name: str, support: Any) -> tuple[int, int] | None:
    """How many states a discrete site has, and the first; None for a real one."""
    if not support.is_discrete:
        return None
    if support is constraints.boolean:
        return 2, 0
    bounds = [getattr(support, bound, None) for bound in ("lower_bound", "upper_bound")]
    if all(bound is not None and np.ndim(bound) == 0 and not isinstance(bound, jax.core.Tracer) for bound in bounds):
        low, high = (int(bound) for bound in bounds)  # type: ignore[arg-type]
        if high > low:
            return high - low + 1, low
    raise TypeError(
        expected(
            "latent sites that are real, bits, or classes of a known number",
            f"the discrete site {name!r} of support {support}",
            "Sum it out of the model, or give it a support with two ends.",
        )
    )


def _observed(name: str, sites: Mapping[str, dict]) -> ObservedSite:
    known = [n for n, site in sites.items() if site["type"] in ("sample", "deterministic")]
    if name not in known:
        raise ValueError(expected(f"an observed site of the model, one of {known}", repr(name), "Choose one of them."))
    site = sites[name]
    if site["type"] == "sample" and site["is_observed"]:
        cure = "Call the model without its data (y=None): they are given to condition(y)."
        raise ValueError(expected(f"site {name!r} to be drawn by the model", "one that is observed already", cure))
    if site["type"] == "sample" and site["scale"] is not None:
        cure = "Draws of y do not know of a power of its density: drop the scale."
        raise ValueError(expected(f"an unscaled observed site {name!r}", f"scale {site['scale']}", cure))
    value, seen = jnp.asarray(site["value"]), None
    if site["type"] == "sample" and is_masked(site["fn"]):
        seen = np.broadcast_to(np.asarray(unmask(site["fn"])[1]), value.shape)
    return ObservedSite(name, value.shape, value.dtype, seen)


def _are_alike(one: Any, other: Any) -> bool:
    """Whether two sites have the same coordinates."""
    if type(one) is not type(other) or one.shape != other.shape:
        return False
    if isinstance(one, ObservedSite):
        return True
    return (one.num_states, one.first) == (other.num_states, other.first) and bool(one.transform == other.transform)


def _mask_leaves(site: dict) -> list:
    masked = site["type"] == "sample" and is_masked(site["fn"])
    return [unmask(site["fn"])[1]] if masked else []


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
