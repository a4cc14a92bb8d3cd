r"""A NumPyro model as its diffusion sites and everything else.

For diffusion sites x, other latent sites theta and observations y the joint density is

    p(x) r(x, theta),     log r = sum of log_prob over all sites that are no diffusion, priors of theta included.

An engine needs p's chains and log r; both come from tracing the user's model with values substituted, so that
any model works: several diffusion sites, plates, chains that depend on theta, any likelihood.

Elements of a plate that log r does not couple are filtered one by one (:mod:`.independence`).

Not assumed: that theta is continuous, or independent of x.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro.handlers import seed, substitute, trace

from .._checks import expected
from .._compat.numpyro import eval_provenance
from .._typing import Array, PyTree, Shape
from ..chains import ReverseChain
from ..diffusion import Diffusion, depends_on_latent
from ..estimates import AsDensity
from ..wrappers import find_diffusions, unwrap
from .independence import by_element, exchange, why_coupled
from .sites import (
    DiffusionSite,
    check_trained,
    diffusion_sites,
    is_latent,
    random_state,
    site_log_prob,
)

__all__ = ["DiffusionSite", "LogFactor", "SplitModel"]

Values = Mapping[str, Any]


class LogFactor(NamedTuple):
    """log r: one term for each element, and what is not of one element."""

    elements: Array
    shared: Array


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
            diffusion site, a parameter without value, or an observation whose shape does not fit; for ``"auto"`` when
            the model's data are traced, so that nothing can be tried.
    """

    def __init__(self, model: Callable, args: tuple, kwargs: Values, *, elements: str = "auto") -> None:
        self.model = model
        self.args = args
        self.kwargs = dict(kwargs)
        # Traced and never computed: what is wanted is static, and a random state may be where laws are not defined.
        latent = jax.eval_shape(self._look, jax.random.key(0))
        self._provenance = self._find_provenance(latent)
        self._check_not_nested()
        self._check_estimated()
        self.element_shape, self.reason = self._find_elements(elements)

    @property
    def num_steps(self) -> int:
        """The longest chain's T."""
        return max(site.num_steps for site in self.sites)

    def draw_others(self, key: jax.Array, x: Values | None = None) -> tuple[dict[str, Array], Array]:
        """Other latent sites drawn from their prior, with the log density at which they were drawn.

        Sites whose law depends on x are drawn at one of the given x, and their density is the mixture over all of them:
        at a single x it says nothing of where other x lead, and the weights would have no finite variance.

        Args:
            key: randomness.
            x: draws of the diffusion sites, (M, site shape...); None for some random x.
        """
        if not x or not self.others_depend_on_x():
            with numpyro.validation_enabled(False):  # as for chains; a draw of a law is in its support
                return self._others_of(self._trace({}, key))
        key_pick, key_draw = jax.random.split(key)
        count = len(next(iter(x.values())))
        index = jax.random.randint(key_pick, (), 0, count)
        others, _ = self._others_of(self._trace({name: draws[index] for name, draws in x.items()}, key_draw))
        log_densities = jax.vmap(lambda x: self._others_of(self._trace({**x, **others}, key))[1])(dict(x))
        return others, jax.nn.logsumexp(log_densities) - jnp.log(count)

    def others_depend_on_x(self) -> bool:
        """Whether the law of another latent site depends on a diffusion site."""
        names = {site.name for site in self.sites}
        return any(self._provenance[name] & names for name in self.others)

    def chains(self, others: Values) -> dict[str, ReverseChain]:
        """The chain of each diffusion site, given the other sites."""
        # The likelihood is run at a random x, where its laws need not be defined.
        with numpyro.validation_enabled(False):
            sites = self._trace(others, jax.random.key(0))
        result = {}
        for site in self.sites:
            law, batch_shape = unwrap(sites[site.name]["fn"])
            result[site.name] = law.chain.expand(batch_shape)
        return result

    def log_factor(self, x: Values, others: Values) -> LogFactor:
        """The factor log r(x, theta) in nats: shape E for the elements, () for what they share."""
        elements, shared = jnp.zeros(self.element_shape), jnp.zeros(())
        sites = self._trace({**x, **others}, jax.random.key(0))
        for name, term in self._terms(sites, self.element_shape).items():
            if term is None:
                shared = shared + site_log_prob(sites[name]).sum()
            else:
                elements = elements + term
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

        def observed(key: jax.Array) -> dict[str, Array]:
            sites = self._trace({}, key)
            observed = {n: s for n, s in sites.items() if s["type"] == "sample" and s["is_observed"]}
            return {name: jnp.asarray(site["value"]) for name, site in observed.items()}

        return jax.jit(observed)(jax.random.key(0))

    def _others_of(self, sites: dict[str, dict]) -> tuple[dict[str, Array], Array]:
        """The other latent sites' values, and their log_prob in all."""
        values = {name: jnp.asarray(sites[name]["value"]) for name in self.others}
        return values, sum((site_log_prob(sites[name]).sum() for name in self.others), jnp.zeros(()))

    def _look(self, key: jax.Array) -> dict[str, Array]:
        """Note what is static of the model's sites; the values of latent ones."""
        prototype = self._trace({}, key)
        self.sites = diffusion_sites(prototype)
        names = {site.name for site in self.sites}
        latent = {name: site["value"] for name, site in prototype.items() if is_latent(site)}
        self.others = tuple(name for name in latent if name not in names)
        self.discrete_others = tuple(name for name in self.others if prototype[name]["fn"].support.is_discrete)
        self.deterministic = tuple(name for name, site in prototype.items() if site["type"] == "deterministic")
        return latent

    def _trace(self, values: Values, key: jax.Array) -> dict[str, dict]:
        """The model's sites with ``values`` in place; a diffusion site without one gets a random value of its shape."""

        def fill(message: dict) -> Any:
            check_trained(message)
            if message["type"] != "sample" or message["is_observed"]:
                return None
            if message["name"] in values:
                return values[message["name"]]
            law, _ = unwrap(message["fn"])
            if not isinstance(law, Diffusion):
                return None
            return random_state(law, message["fn"].shape(), message["kwargs"]["rng_key"])

        with numpyro.handlers.block():
            return trace(substitute(seed(self.model, key), substitute_fn=fill)).get_trace(*self.args, **self.kwargs)

    def _terms(self, sites: dict[str, dict], shape: Shape) -> dict[str, Array | None]:
        """The log_prob of every site but diffusions, by element; None where it has no axis of them."""
        names = {site.name for site in self.sites}
        return {
            name: by_element(site_log_prob(site), shape)
            for name, site in sites.items()
            if site["type"] == "sample" and name not in names
        }

    def _find_provenance(self, values: Values) -> dict[str, frozenset[str]]:
        """For each sample site, on which latent sites its law (a diffusion) or its density (any other) depends."""
        names = {site.name for site in self.sites}
        self._estimated: dict[str, bool] = {}  # other sites that hold diffusions: whether the user says so

        def densities(**values: Any) -> dict[str, PyTree]:
            result = {}
            for name, site in self._trace(values, jax.random.key(0)).items():
                if site["type"] == "sample":
                    if name in names:
                        leaves = jax.tree.leaves(unwrap(site["fn"])[0])
                    elif find_diffusions(site["fn"]):  # an observed one: what its bound would be made of
                        leaves = jax.tree.leaves((site["fn"], site["value"], site["scale"]))
                        told = (isinstance(diffusion.estimator, AsDensity) for diffusion in find_diffusions(site["fn"]))
                        self._estimated[name] = all(told)
                    else:
                        leaves = [site_log_prob(site)]
                    # All but keys: a flag or a count can carry another site's value as well as a number can.
                    numbers = [
                        leaf for leaf in leaves if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
                    ]
                    result[name] = sum((jnp.sum(jnp.asarray(leaf, float)) for leaf in numbers), jnp.zeros(()))
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

    def _check_estimated(self) -> None:
        for name, is_told in self._estimated.items():
            above = sorted(self._provenance[name] - {name})
            if above and not is_told:
                raise ValueError(depends_on_latent(name, f"one that depends on {above}"))

    def _find_elements(self, elements: str) -> tuple[Shape, str]:
        if elements not in ("auto", "independent", "joint"):
            raise ValueError(
                expected("elements 'auto', 'independent' or 'joint'", repr(elements), "Choose one of these names.")
            )
        if elements == "joint":
            return (), "told so"
        shape = self.sites[0].batch_shape
        reason = self._why_no_elements(shape)
        if elements == "independent":
            if reason:
                raise ValueError(
                    expected("elements that the likelihood does not couple", reason, "Say elements='joint'.")
                )
            return shape, "told so"
        reason = reason or why_coupled(lambda key: self._exchange_elements(shape, key))
        return ((), reason) if reason else (shape, "exchanging elements exchanges their terms of the likelihood")

    def _why_no_elements(self, shape: Shape) -> str:
        """What forbids filtering by elements, as far as shapes and dependences tell."""
        names = {site.name for site in self.sites}
        if any(site.batch_shape != shape for site in self.sites):
            return "the diffusion sites have different plates"
        if not shape:
            return "no diffusion site is in a plate"
        terms = jax.eval_shape(lambda key: self._terms(self._trace({}, key), shape), jax.random.key(0))
        for name, term in terms.items():
            if term is None and self._provenance[name] & names:
                return f"site {name!r} depends on the elements of the plate together"
        return ""

    def _exchange_elements(self, shape: Shape, key: jax.Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """One trial of :func:`.elements.why_coupled`."""
        key_ours, key_theirs, key_subset = jax.random.split(key, 3)
        subset = jax.random.bernoulli(key_subset, 0.5, shape)
        traced = self._trace({}, key_ours), self._trace({}, key_theirs)
        ours, theirs = ({site.name: sites[site.name]["value"] for site in self.sites} for sites in traced)
        others = {name: traced[0][name]["value"] for name in self.others}

        def terms(x: Values) -> dict[str, Array]:
            every = self._terms(self._trace({**x, **others}, key), shape)
            return {name: term for name, term in every.items() if term is not None}

        mixed = {name: exchange(subset, ours[name], theirs[name]) for name in ours}
        at_ours, at_theirs = terms(ours), terms(theirs)
        return terms(mixed), {name: exchange(subset, at_ours[name], at_theirs[name]) for name in at_ours}
