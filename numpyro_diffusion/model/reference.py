r"""A model seen from a standard normal: its density on unconstrained space divided by N(u; 0, I).

    log density(u) = log N(u; 0, I) + log L(u),    u = all latent sites, diffusion sites as their noises.

On a site that is exactly N(0, 1), as the noises are, the prior cancels and is not computed: its sum over all
steps and coordinates would cost the likelihood its last digits. On every other site L also turns N(0, 1) into the
site's own distribution.

Assumed: real latent sites with their supports, and a model that is a function of its arguments.
"""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import biject_to
from numpyro.handlers import reparam, seed
from numpyro.infer import init_to_sample

from .._checks import expected
from .._compat.numpyro import (
    Messenger,
    compute_log_probs,
    constrain_fn,
    potential_energy,
    unconstrained_log_probs,
)
from .._typing import Array, Shape
from ..guidance import Guidance
from ..wrappers import is_masked, unwrap
from .automatic import AutoGuidance, ModelGuidance, with_states
from .independence import by_element
from .reparam import ChainNoise, DiffusionReparam, is_chain_noise
from .sites import check_estimate_named, check_proper, check_trained, latent_diffusion
from .split import split_model
from .trace import trace_model

__all__ = ["NormalReference", "Values"]

Values = dict[str, Any]  # site name -> array


class NormalReference:
    """A model with its arguments; latent Diffusion sites are reparameterised, unless the model did so itself.

    Args:
        model: a NumPyro model.
        args, kwargs: its arguments.
        guidance: of diffusion sites, by name, see :class:`DiffusionReparam`; or made of the model: what
            :class:`AutoGuidance` binds, or ``"auto"``, for which it is made here.
    """

    def __init__(
        self,
        model: Callable,
        args: tuple,
        kwargs: Values,
        guidance: Mapping[str, Guidance] | ModelGuidance | Literal["auto"] | None = None,
    ) -> None:
        self.model = model
        self.args = args
        self.kwargs = kwargs
        if isinstance(guidance, str):
            guidance = AutoGuidance(model).bind(args, kwargs)
        self.guidance = guidance if isinstance(guidance, ModelGuidance) else dict(guidance or {})

    def log_likelihood(self, u: Values) -> Array:
        """The number log L(u) in nats: finite, or -inf where the density is 0, infinite or NaN."""
        model = _CancelStandardNormals(self._noncentred(jax.random.key(0), self._guidance_at(u)))
        log_density = -potential_energy(model, self.args, self.kwargs, u)
        others = [value for name, value in u.items() if name not in model.cancelled]
        value = jnp.asarray(log_density - sum(dist.Normal(0.0, 1.0).log_prob(other).sum() for other in others), float)
        return jnp.where(jnp.isfinite(value), value, -jnp.inf)

    def log_prior_and_rest(self, u: Values) -> tuple[Array, Array]:
        """Log L(u) in two, nats: the priors of the sites in ``prior_drawn`` over N(0, 1), and the rest."""
        model = _CancelStandardNormals(self._noncentred(jax.random.key(0), self._guidance_at(u)))
        log_probs = unconstrained_log_probs(model, self.args, self.kwargs, u)
        ratios = {
            name: log_probs.pop(name) - dist.Normal(0.0, 1.0).log_prob(u[name]).sum()
            for name in u
            if name not in model.cancelled
        }
        drawn = sum((ratios.pop(name) for name in sorted(self.prior_drawn & ratios.keys())), 0.0)
        parts = (jnp.asarray(part, float) for part in (drawn, sum([*ratios.values(), *log_probs.values()], 0.0)))
        log_prior, rest = (jnp.where(jnp.isfinite(part), part, -jnp.inf) for part in parts)
        return log_prior, rest

    @cached_property
    def prior_drawn(self) -> frozenset[str]:
        """The sites, noises apart, that ``prior_draw`` draws from N(u; 0, I) times their part of the density.

        Not one whose prior is scaled or masked. Not one that depends on a diffusion site whose guidance in turn follows
        other sites: there x is that of the guidance somewhere else. And none that depends on such sites.
        """
        plain: dict[str, bool] = {}

        def look(key: Array) -> None:
            for name, site in _latent(self._sites(key)).items():
                plain[name] = site["scale"] is None and not is_masked(site["fn"])

        jax.eval_shape(look, jax.random.key(0))
        noises = self.noises()
        if not all(plain[name] for name in noises & plain.keys()):
            return frozenset()
        away = {name for name, is_plain in plain.items() if not is_plain}
        if isinstance(self.guidance, ModelGuidance):
            away |= {name for name, site in self.guidance.sites.items() if site.follows}
        if away:
            depends = self._dependences()
            if depends is None:
                return frozenset()
            while below := {name for name, above in depends.items() if above & away} - away:
                away |= below
        return frozenset(plain) - noises - away

    def _dependences(self) -> Mapping[str, frozenset[str]] | None:
        """On which latent sites the density of each site depends; None where it is not known."""
        if isinstance(self.guidance, ModelGuidance):
            return None if self.guidance.split is None else self.guidance.split.program.depends
        try:
            return split_model(self.model, self.args, self.kwargs).program.depends
        except ValueError:
            return None

    def terms_and_gradient(self, u: Values) -> tuple[Array, Values]:
        """Log L(u) in nats by element, shape ``elements``, and the gradient of their sum."""

        def total(u: Values) -> tuple[Array, Array]:
            terms = self._terms(u) if self.elements else self.log_likelihood(u)
            return terms.sum(), terms

        (_, terms), gradient = jax.value_and_grad(total, has_aux=True)(u)
        return terms, gradient

    def _terms(self, u: Values) -> Array:
        model = _CancelStandardNormals(self._noncentred(jax.random.key(0), self._guidance_at(u)))
        log_probs, _ = compute_log_probs(model, self.args, self.kwargs, u, sum_log_prob=False)
        terms = jnp.zeros(self.elements)
        for log_prob in log_probs.values():
            term = by_element(log_prob, self.elements)
            terms += jnp.sum(log_prob) / terms.size if term is None else term  # no x enters what is of no element
        return jnp.where(jnp.isfinite(terms), terms, -jnp.inf)

    def constrain(self, u: Values) -> Values:
        """Values of all latent sites in their supports, and of all deterministic ones."""
        model = self._noncentred(jax.random.key(0), self._guidance_at(u))
        return constrain_fn(model, self.args, self.kwargs, u, return_deterministic=True)

    def prior_draw(self, key: Array) -> dict[str, Array]:
        """Unconstrained values of the latent sites, drawn from their prior.

        Raises:
            TypeError: for a discrete latent site.
            ValueError: for a model without a latent diffusion site, with a subsampled plate or untrained parameters.
        """
        draw = {name: biject_to(site["fn"].support).inv(site["value"]) for name, site in self._latent_sites(key)}
        return {name: jnp.asarray(u, jnp.result_type(u)) for name, u in draw.items()}

    def noises(self) -> frozenset[str]:
        """Names of the sites that are noises of a diffusion."""
        return frozenset(f"{name}_noise" for name in self._noncentred_sites(self._sites))

    @property
    def elements(self) -> Shape:
        """Shape of the plate whose elements the posterior does not couple; () where they go together."""
        return self._elements[0]

    @property
    def elements_reason(self) -> str:
        """Why they do not, or go together, in words."""
        return self._elements[1]

    @cached_property
    def _elements(self) -> tuple[Shape, str]:
        if isinstance(self.guidance, ModelGuidance):
            split, reason = self.guidance.split, self.guidance.reason
        elif self.guidance:
            split, reason = None, "guidance that is given may couple them"
        else:
            try:
                split, reason = split_model(self.model, self.args, self.kwargs), ""
            except ValueError as refused:
                split, reason = None, str(refused)
        if split is None:
            return (), reason
        if split.others:
            return (), f"other sites are unknown: {list(split.others)}"
        return split.element_shape, split.reason

    @cached_property
    def charts(self) -> dict[str, str]:
        """What the noises of each diffusion site are those of, in words."""
        if isinstance(self.guidance, ModelGuidance):
            found, reason = dict(self.guidance.charts), self.guidance.reason
        else:
            found, reason = {name: f"guided by {type(each).__name__}" for name, each in self.guidance.items()}, ""
        own = self._noncentred_sites(lambda key: trace_model(seed(self.model, key), self.args, self.kwargs))
        found = {**dict.fromkeys(own, "the model's own"), **found}
        unguided = f"the prior's: {reason}" if reason else "the prior's"
        return {name: found.get(name, unguided) for name in self._noncentred_sites(self._sites)}

    def _noncentred_sites(self, sites: Callable[[Array], Values]) -> list[str]:
        """The diffusions among some sites that are functions of their noises, by the shapes alone."""
        found: list[str] = []
        jax.eval_shape(lambda key: found.extend(_diffusions(sites(key))), jax.random.key(0))
        return found

    def check_evidence(self) -> None:
        """Refuse an observed diffusion without a named estimate, by the shapes alone: a posterior needs none.

        Raises:
            ValueError: with the site.
        """

        def look(key: Array) -> None:
            for site in self._sites(key).values():
                check_estimate_named(site)

        jax.eval_shape(look, jax.random.key(0))

    def transforms(self) -> Values:
        """Each latent site's transform from the real line.

        Raises:
            ValueError: if one depends on an array, which may be the value of another site.
        """
        supports = {}

        def look(key: Array) -> None:
            supports.update({name: site["fn"].support for name, site in self._latent_sites(key)})

        jax.eval_shape(look, jax.random.key(0))
        for name, support in supports.items():
            if not all(isinstance(leaf, (int, float)) for leaf in jax.tree.leaves(support)):
                raise ValueError(
                    expected(
                        "supports that are known beforehand, in a block of a Gibbs kernel",
                        f"one that is computed, at site {name!r}",
                        "Draw the site from a fixed support and rescale it in the model.",
                    )
                )
        return {name: biject_to(support) for name, support in supports.items()}

    def _guidance_at(self, u: Values | None = None) -> Mapping[str, Guidance]:
        """Guidance by site at values of the other latent sites, by default where the model was linearised."""
        guidance = self.guidance
        if not isinstance(guidance, ModelGuidance):
            return guidance
        others = guidance.others
        if u is not None and not guidance.is_fixed:
            # Where a support depends on a diffusion site it is that of a fixed state: a function of the others alone.
            model = seed(with_states(self.model), jax.random.key(0))
            others = constrain_fn(model, self.args, self.kwargs, {name: u[name] for name in others})
        return guidance.at(others)

    def _noncentred(self, key: Array, guidance: Mapping[str, Guidance]) -> Callable:
        return reparam(seed(self.model, key), config=partial(_noises_for_diffusions, guidance))

    def _latent_sites(self, key: Array) -> list[tuple[str, Values]]:
        sites = self._sites(key)
        _check_sites(sites, {} if isinstance(self.guidance, ModelGuidance) else self.guidance)
        return list(_latent(sites).items())

    def _sites(self, key: Array) -> Values:
        return trace_model(self._noncentred(key, self._guidance_at()), self.args, self.kwargs, fill=_initial_value)


def _noises_for_diffusions(guidance: Mapping[str, Guidance], site: Values) -> DiffusionReparam | None:
    wrapped = latent_diffusion(site)
    if wrapped is None or wrapped.diffusion.kernel.is_discrete:
        return None
    return DiffusionReparam(guidance.get(site["name"]))


class _CancelStandardNormals(Messenger):
    """Takes the prior of every latent site that is exactly N(0, 1) out of the density, and remembers its name."""

    def __init__(self, fn: Callable) -> None:
        super().__init__(fn)
        self.cancelled: set[str] = set()

    def process_message(self, msg: Values) -> None:
        # A scaled site is a power of its density: no longer N(0, 1).
        if msg["type"] == "sample" and not msg["is_observed"] and msg["scale"] is None:
            fn, _ = unwrap(msg["fn"])
            if type(fn) in (dist.Normal, ChainNoise) and _is_number(fn.loc, 0) and _is_number(fn.scale, 1):
                self.cancelled.add(msg["name"])
                msg["fn"] = msg["fn"].mask(False)


def _is_number(value: Any, wanted: int) -> bool:
    """Whether a parameter is a Python number, known while tracing, of this value."""
    return isinstance(value, (int, float)) and value == wanted


def _initial_value(site: Values) -> Array | None:
    """A draw from the prior for a latent site; a parameter must come with its value."""
    check_trained(site)
    check_proper(site)
    return init_to_sample(site) if site["type"] == "sample" and site["value"] is None else None


def _latent(sites: Values) -> Values:
    return {n: site for n, site in sites.items() if site["type"] == "sample" and not site["is_observed"]}


def _diffusions(sites: Values) -> list[str]:
    """DiffusionReparam, the user's or ours, leaves a deterministic site x and its noises."""
    return [name.removesuffix("_noise") for name, site in _latent(sites).items() if is_chain_noise(site["fn"])]


def _check_sites(sites: Values, guidance: Mapping[str, Guidance]) -> None:
    latent = _latent(sites)
    for name, site in latent.items():
        if site["fn"].support.is_discrete:
            raise TypeError(
                expected(
                    "real latent sites",
                    f"the discrete site {name!r}, {type(unwrap(site['fn'])[0]).__name__}",
                    "Noises are real numbers: use DiffusionGibbs, or sum the site out of the model.",
                )
            )
    for name, site in sites.items():
        if site["type"] == "plate" and site["args"][1] is not None and site["args"][1] < site["args"][0]:
            raise ValueError(
                expected(
                    "a model with all its data",
                    f"plate {name!r} with {site['args'][1]} of {site['args'][0]}",
                    "Drop subsample_size: a posterior needs every datum.",
                )
            )
    diffusions = _diffusions(sites)
    unknown = sorted(set(guidance) - {name for name in diffusions if f"{name}_log_ratio" in sites})
    if diffusions and unknown:
        cure = "Name latent diffusion sites that the model has not reparameterised itself."
        raise ValueError(expected(f"guidance of the sites {diffusions}", f"of {unknown}", cure))
    if not diffusions:
        raise ValueError(
            expected("a latent Diffusion site", f"latent sites {list(latent)}", "Without one, use numpyro.infer.NUTS.")
        )
