r"""A NumPyro model as its diffusion sites and everything else.

For diffusion sites x, other latent sites theta and observations y the joint density is

    p(x) r(x, theta),     log r = sum of log_prob over all sites that are no diffusion, priors of theta included.

An engine needs p's chains and log r; both come from tracing the user's model with values substituted, so that
any model works: several diffusion sites, plates, chains that depend on theta, any likelihood.

Elements. When all diffusion sites share one batch shape E (a plate) and log r is a sum of terms of one element each,
log r(x) = shared + sum_i log r_i(x_i), the posterior factorises and each element can be filtered by itself. A model
cannot be asked whether it does; it is tried: between two random states, exchanging any subset of elements must
exchange exactly those elements' terms. Eight random subsets are tried, and each pair of elements is told apart
by one of them with probability 1 - 2^-8 at least; a model whose terms are not finite there counts as coupled.

Not assumed: that theta is continuous, or independent of x.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import seed, substitute, trace
from numpyro.ops.provenance import eval_provenance

from .._checks import expected
from .._typing import Array, PyTree, Shape
from ..chains import ReverseChain
from ..diffusion import Diffusion

__all__ = ["DiffusionSite", "LogFactor", "SplitModel", "unwrap_diffusion"]

Values = Mapping[str, Any]


class DiffusionSite(NamedTuple):
    """What is static about one latent diffusion site."""

    name: str
    batch_shape: Shape  # of the site: its plates
    shape: Shape  # of one value: plates, dimensions turned to events, event
    num_steps: int
    is_discrete: bool


class LogFactor(NamedTuple):
    """log r: one term for each element, and what is not of one element."""

    elements: Array
    shared: Array


def unwrap_diffusion(fn: dist.Distribution) -> tuple[dist.Distribution, Shape]:
    """What is inside of ``expand`` and ``to_event``, with the full batch shape that it has there."""
    shape = fn.shape()
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn, shape[: len(shape) - fn.event_dim]


class SplitModel:
    """A model with its arguments, split into diffusion sites and the factor r that multiplies their law.

    Args:
        model: a NumPyro model.
        args, kwargs: its arguments; they may be tracers.
        elements: ``"auto"`` (try), ``"independent"`` (told so), or ``"joint"``.

    Attributes:
        sites: the latent diffusion sites, in the model's order.
        others: names of the other latent sites; ``discrete_others`` those of them with discrete support.
        deterministic: names of deterministic sites.
        element_shape: E when elements are filtered one by one, else ().
        reason: why they are or are not, in words.

    Raises:
        ValueError: for a model without a latent diffusion site, a subsampled plate, a scaled, masked or nested
            diffusion site, or an observation whose shape does not fit.
    """

    def __init__(self, model: Callable, args: tuple, kwargs: Values, *, elements: str = "auto") -> None:
        self.model = model
        self.args = args
        self.kwargs = dict(kwargs)
        prototype = self._trace({}, jax.random.key(0))
        self.sites = tuple(_diffusion_sites(prototype))
        names = {site.name for site in self.sites}
        latent = [name for name, site in prototype.items() if _is_latent(site)]
        self.others = tuple(name for name in latent if name not in names)
        self.discrete_others = tuple(name for name in self.others if prototype[name]["fn"].support.is_discrete)
        self.deterministic = tuple(name for name, site in prototype.items() if site["type"] == "deterministic")
        _check_sites(prototype, self.sites)
        self._provenance = self._find_provenance({name: prototype[name]["value"] for name in latent})
        self._check_not_nested()
        self.element_shape, self.reason = self._find_elements(elements)

    @property
    def num_steps(self) -> int:
        """The longest chain's T."""
        return max(site.num_steps for site in self.sites)

    def draw_others(self, key: jax.Array) -> tuple[dict[str, Array], Array]:
        """Other latent sites drawn from their prior, with the log density at which they were drawn.

        A site whose law depends on x is drawn at a random x; the density accounts for it, so the weights are right.
        """
        sites = self._trace({}, key)
        values = {name: jnp.asarray(sites[name]["value"]) for name in self.others}
        return values, sum((_log_prob(sites[name]).sum() for name in self.others), jnp.zeros(()))

    def chains(self, others: Values) -> dict[str, ReverseChain]:
        """The chain of each diffusion site, given the other sites."""
        sites = self._trace(others, jax.random.key(0))
        result = {}
        for site in self.sites:
            law, batch_shape = unwrap_diffusion(sites[site.name]["fn"])
            result[site.name] = law.chain.expand(batch_shape)
        return result

    def log_factor(self, x: Values, others: Values) -> LogFactor:
        """The factor log r(x, theta) in nats: shape E for the elements, () for what they share."""
        names = {site.name for site in self.sites}
        elements, shared = jnp.zeros(self.element_shape), jnp.zeros(())
        for name, site in self._trace({**x, **others}, jax.random.key(0)).items():
            if site["type"] == "sample" and name not in names:
                term = self._by_element(_log_prob(site))
                if term is None:
                    shared = shared + _log_prob(site).sum()
                else:
                    elements = elements + term
        if not self.element_shape:
            return LogFactor(elements + shared, jnp.zeros(()))
        return LogFactor(elements, shared)

    def sites_seen(self, x: Values, others: Values) -> dict[str, dict]:
        """The trace's sites, other than diffusions, whose density depends on a diffusion site."""
        names = {site.name for site in self.sites}
        sites = self._trace({**x, **others}, jax.random.key(0))
        return {name: site for name, site in sites.items() if self._provenance.get(name, frozenset()) & names}

    def chains_depend_on_others(self) -> bool:
        """Whether the law of a diffusion site depends on another latent site."""
        return any(self._provenance[site.name] for site in self.sites)

    def deterministic_values(self, values: Values) -> dict[str, Array]:
        """The model's deterministic sites, given all latent ones."""
        sites = self._trace(values, jax.random.key(0))
        return {name: sites[name]["value"] for name in self.deterministic}

    def observations(self) -> dict[str, Array]:
        """Observed sites and their values."""
        sites = self._trace({}, jax.random.key(0))
        return {n: s["value"] for n, s in sites.items() if s["type"] == "sample" and s["is_observed"]}

    def _trace(self, values: Values, key: jax.Array) -> dict[str, dict]:
        """The model's sites with ``values`` in place; a diffusion site without one gets a random value of its shape."""

        def fill(message: dict) -> Any:
            if message["type"] != "sample" or message["is_observed"]:
                return None
            if message["name"] in values:
                return values[message["name"]]
            law, _ = unwrap_diffusion(message["fn"])
            return _random_state(law, message["fn"].shape(), key) if isinstance(law, Diffusion) else None

        with numpyro.handlers.block():
            return trace(substitute(seed(self.model, key), substitute_fn=fill)).get_trace(*self.args, **self.kwargs)

    def _find_provenance(self, values: Values) -> dict[str, frozenset[str]]:
        """For each sample site, on which latent sites its law (a diffusion) or its density (any other) depends."""
        names = {site.name for site in self.sites}

        def densities(**values: Any) -> dict[str, PyTree]:
            result = {}
            for name, site in self._trace(values, jax.random.key(0)).items():
                if site["type"] == "sample":
                    is_diffusion = name in names
                    leaves = jax.tree.leaves(unwrap_diffusion(site["fn"])[0]) if is_diffusion else [_log_prob(site)]
                    floats = [leaf for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.number)]
                    result[name] = sum((jnp.sum(leaf) for leaf in floats), jnp.zeros(()))
            return result

        return eval_provenance(densities, **values)

    def _check_not_nested(self) -> None:
        names = {site.name for site in self.sites}
        for site in self.sites:
            above = self._provenance[site.name] & names
            if above:
                raise ValueError(
                    expected(
                        f"a law of diffusion site {site.name!r} that depends on no other diffusion site",
                        f"one that depends on {sorted(above)}",
                        "Particle engines walk all chains together; use DiffusionReparam with NUTS.",
                    )
                )

    def _by_element(self, log_prob: Array) -> Array | None:
        """Sum a site's log_prob to E; None if it has no axis of the elements."""
        shape = self.element_shape
        if log_prob.ndim < len(shape):
            return None
        log_prob = log_prob.sum(tuple(range(log_prob.ndim - len(shape))))
        ones = tuple(axis for axis, size in enumerate(shape) if size == 1)
        log_prob = log_prob.sum(ones, keepdims=True)
        return log_prob if log_prob.shape == shape else None

    def _find_elements(self, elements: str) -> tuple[Shape, str]:
        if elements not in ("auto", "independent", "joint"):
            raise ValueError(
                expected("elements 'auto', 'independent' or 'joint'", repr(elements), "Choose one of these names.")
            )
        shapes = {site.batch_shape for site in self.sites}
        if elements == "joint":
            return (), "told so"
        if len(shapes) > 1:
            reason = "the diffusion sites have different plates"
        elif not max(shapes):
            reason = "no diffusion site is in a plate"
        elif elements == "independent":
            return max(shapes), "told so"
        else:
            self.element_shape = max(shapes)
            if self._exchange_separates():
                return self.element_shape, "exchanging elements exchanges their terms of the likelihood"
            reason = "the likelihood couples the elements of the plate"
        if elements == "independent":
            raise ValueError(expected("a plate shared by all diffusion sites", reason, "Say elements='auto'."))
        return (), reason

    def _exchange_separates(self) -> bool:
        with jax.ensure_compile_time_eval():
            keys = jax.random.split(jax.random.key(1), 4)
            first, second = (self._trace({}, key) for key in keys[:2])
            others = {name: first[name]["value"] for name in self.others}
            x, z = ({site.name: states[site.name]["value"] for site in self.sites} for states in (first, second))
            masks = jax.random.bernoulli(keys[2], 0.5, (8, *self.element_shape))

            def mixed(mask: Array, ours: Array, theirs: Array) -> Array:
                extra = ours.ndim - mask.ndim
                return jnp.where(mask.reshape(mask.shape + (1,) * extra), theirs, ours)

            factor = jax.jit(lambda x: self.log_factor(x, others))
            at_x, at_z = factor(x), factor(z)
            for mask in masks:
                found = factor({name: mixed(mask, x[name], z[name]) for name in x})
                wanted = LogFactor(mixed(mask, at_x.elements, at_z.elements), at_x.shared)
                if not all(_agree(a, b) for a, b in zip(found, wanted, strict=True)):
                    return False
            return _agree(at_x.shared, at_z.shared)


def _agree(found: Array, wanted: Array) -> bool:
    """Equal to rounding, and finite."""
    a, b = np.asarray(found, float), np.asarray(wanted, float)
    return bool(np.all(np.isfinite(a)) and np.all(np.abs(a - b) <= 1e-5 * (1 + np.abs(b))))


def _is_latent(site: dict) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _random_state(law: Diffusion, shape: Shape, key: jax.Array) -> Array:
    """Some state of a chain, no draw of it: a place to try the model at."""
    if law.kernel.is_discrete:
        return jax.random.bernoulli(key, 0.5, shape).astype(int)
    return jax.random.normal(key, shape)


def _log_prob(site: dict) -> Array:
    """A site's log_prob with its scale.

    Raises:
        ValueError: if the value does not fit the law's shape.
    """
    value, law = site["value"], site["fn"]
    try:
        jnp.broadcast_shapes(jnp.shape(value), law.shape())
    except ValueError as error:
        raise ValueError(
            expected(
                f"a value of shape {law.shape()} at site {site['name']!r}",
                f"shape {jnp.shape(value)}",
                "Check the observation against the law that the model gives it.",
            )
        ) from error
    intermediates = site["intermediates"]
    log_prob = law.log_prob(value, intermediates) if intermediates else law.log_prob(value)
    return log_prob if site["scale"] is None else site["scale"] * log_prob


def _diffusion_sites(prototype: dict[str, dict]) -> list[DiffusionSite]:
    sites = []
    for name, site in prototype.items():
        if _is_latent(site):
            law, _ = unwrap_diffusion(site["fn"])
            if isinstance(law, Diffusion):
                kernel = law.kernel
                shapes = site["fn"].batch_shape, site["fn"].shape()
                sites.append(DiffusionSite(name, *shapes, kernel.num_steps, kernel.is_discrete))
    return sites


def _check_sites(prototype: dict[str, dict], sites: tuple[DiffusionSite, ...]) -> None:
    for name, site in prototype.items():
        if site["type"] == "plate" and site["args"][1] is not None and site["args"][0] > site["args"][1]:
            raise ValueError(
                expected(
                    "a model with all its data",
                    f"plate {name!r} with {site['args'][1]} of {site['args'][0]}",
                    "Drop subsample_size: a posterior needs every datum.",
                )
            )
        if isinstance(site.get("fn"), dist.MaskedDistribution) and isinstance(
            unwrap_diffusion(site["fn"].base_dist)[0], Diffusion
        ):
            raise ValueError(
                expected(
                    f"an unmasked diffusion site {name!r}",
                    "a masked one",
                    "Mask the likelihood; where a prior is masked out, leave the site away.",
                )
            )
    if not sites:
        latent = [name for name, site in prototype.items() if _is_latent(site)]
        raise ValueError(
            expected(
                "a model with a latent Diffusion site",
                f"latent sites {latent}",
                "Give one a numpyro_diffusion.Diffusion law; without one, NUTS alone will do.",
            )
        )
    for found in sites:
        if prototype[found.name]["scale"] is not None:
            raise ValueError(
                expected(
                    f"an unscaled diffusion site {found.name!r}",
                    f"scale {prototype[found.name]['scale']}",
                    "A power of a diffusion's law has no chain; scale the likelihood instead.",
                )
            )
