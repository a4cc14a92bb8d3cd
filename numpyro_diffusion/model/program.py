r"""A NumPyro model, traced once, as functions of arrays.

The user's model is run on abstract values of its arguments' shapes, never again for arguments of the same shapes: what
it does becomes a jaxpr (a program of array operations), and every question of an engine is an evaluation of that.

Arrays that the model closes over, a network's parameters among them, are arguments of the program and no constants.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._checks import check_finite, expected
from .._compat.jax import evaluate_jaxpr, used_inputs
from .._typing import Array, PyTree, Shape
from ..chains import ReverseChain
from ..diffusion import Diffusion, depends_on_latent
from ..estimates import AsDensity
from ..guidance import ErrorCovariance
from ..wrappers import WrappedDiffusion, unmask, wrapped_diffusion
from .arguments import Static, join
from .independence import has_elements, why_coupled
from .nearest_normal import nearest_normal
from .observations import (
    NormalSite,
    likelihood_name,
    normal_site,
)
from .sites import (
    DiffusionSite,
    check_proper,
    check_trained,
    diffusion_sites,
    is_latent,
    refuse_unnamed,
    site_log_prob,
)
from .trace import trace_model

__all__ = ["Program", "Traced", "Values"]

Values = Mapping[str, Any]


class Traced(NamedTuple):
    """What one run of the model gives, at values of its latent sites."""

    log_probs: dict[str, Array]  # of every sample site that is no diffusion, scaled
    chains: dict[str, ReverseChain]  # of the diffusion sites
    errors: dict[str, ErrorCovariance]  # of those whose prior carries them
    transformed: dict[str, Array]  # values of the transformed ones
    normal: dict[str, NormalSite | None]  # the same sites, where they are Normal
    nearest: dict[str, NormalSite | None]  # and where they can be taken as that
    deterministic: dict[str, Array]
    observed: dict[str, Array]
    seen: dict[str, Array]  # of these, what masks let through


class _Function(NamedTuple):
    """A traced function: its operations, the arrays that it closed over, and the structure of its result."""

    jaxpr: Any
    structure: Any

    def __call__(self, consts: list[Array], *arguments: PyTree) -> Any:
        leaves = evaluate_jaxpr(self.jaxpr, consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(self.structure, [jnp.asarray(leaf) for leaf in leaves])


def _trace_function(function: Callable, *arguments: PyTree) -> tuple[_Function, list[Array]]:
    """A function of pytrees of arrays as its operations and the arrays that it closed over."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return _Function(closed.jaxpr, jax.tree.structure(shape)), [jnp.asarray(const) for const in closed.consts]


class Program:
    """A model at arguments of given shapes. Hashable by identity: compiled functions keep it as static.

    Args:
        model: a NumPyro model.
        static: its arguments that are no arrays.
        arrays: those that are, or anything of their shapes.
        elements: ``"auto"`` (proved), ``"independent"`` (told so), or ``"joint"``.
    """

    def __init__(self, model: Callable, static: Static, arrays: list, elements: str) -> None:
        self.model, self.static = model, static
        blank = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), arrays)
        some_key = jax.random.key(0)
        self._key_kind, self._key_shape = jax.random.key_impl(some_key), jax.random.key_data(some_key).shape
        key = jax.eval_shape(lambda: some_key)
        # Run on abstract values: a random state may be where the likelihood is not defined.
        x, others = jax.eval_shape(self._look, key, blank)
        self._estimated: dict[str, list[Diffusion]] = {}
        self.given, self.given_consts = _trace_function(self._at, blank, x, others)
        self.drawn: _Function | None = None
        self.drawn_consts: list[Array] = []
        if others:
            self.drawn, self.drawn_consts = _trace_function(self._draw, key, blank, x)
        # The flat inputs of ``given`` are the arrays, then x and the others in sorted order of names.
        self._num_arrays = len(jax.tree.leaves(blank))
        self._inputs = [*sorted(x), *sorted(others)]
        self.depends = self._find_dependences()
        self._check_not_nested()
        self._check_estimated()
        self.element_shape, self.reason = self._find_elements(elements)

    def key_of_its_kind(self, key: jax.Array) -> jax.Array:
        """A key for ``drawn``, which was traced for JAX's default kind; of a raw key, or one of another generator."""
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(key, impl=self._key_kind)
        if jax.random.key_impl(key) == self._key_kind:
            return key
        return jax.random.wrap_key_data(jax.random.bits(key, self._key_shape, "uint32"), impl=self._key_kind)

    def _run(self, key: jax.Array, arrays: list, values: Values) -> tuple[dict[str, dict], dict[str, WrappedDiffusion]]:
        """The model's sites, and what the diffusion sites are, with ``values`` in place, states of diffusions.

        A diffusion site without one gets some state of its shape.
        """
        diffusions: dict[str, WrappedDiffusion] = {}

        def fill(message: dict) -> Any:
            check_trained(message)
            check_proper(message)
            if message["type"] != "sample" or message["is_observed"]:
                return None
            name, wrapped = message["name"], wrapped_diffusion(message["fn"])
            if wrapped is None:
                return values.get(name)
            diffusions[name] = wrapped
            if name in values:
                return wrapped.value(values[name])
            some_state = wrapped.diffusion.kernel.some_state(message["kwargs"]["rng_key"], wrapped.state_shape)
            return wrapped.value(some_state)

        args, kwargs = join(arrays, self.static)
        return trace_model(self.model, args, kwargs, rng_key=key, fill=fill), diffusions

    def states(self, arrays: list, values: Values) -> dict[str, Array]:
        """The states of diffusion sites at given values, see :meth:`SplitModel.states`."""
        _, diffusions = self._run(jax.random.key(0), arrays, {})
        found = {}
        for name, value in values.items():
            wrapped = diffusions[name]
            shape = wrapped.value_shape
            cure = "Several chains need a leading axis of their number."
            if jnp.shape(value) != shape:
                got = f"shape {jnp.shape(value)}"
                raise ValueError(expected(f"init_params[{name!r}] of shape {shape} for each chain", got, cure))
            found[name] = wrapped.state(jnp.asarray(value))
            if wrapped.transforms:
                check_finite(f"the state of init_params[{name!r}], which must lie in the site's support", found[name])
        return found

    def _look(self, key: jax.Array, arrays: list) -> tuple[dict[str, Array], dict[str, Array]]:
        """Note what is static of the model's sites; states of the diffusion sites, values of the other latent ones."""
        prototype, diffusions = self._run(key, arrays, {})
        self.sites: tuple[DiffusionSite, ...] = diffusion_sites(prototype)
        names = [site.name for site in self.sites]  # in one order in every process, as no set is
        x = {name: diffusions[name].diffusion.kernel.some_state(key, diffusions[name].state_shape) for name in names}
        latent = {name: jnp.asarray(site["value"]) for name, site in prototype.items() if is_latent(site)}
        others = {name: value for name, value in latent.items() if name not in names}
        self.others = tuple(others)
        self.discrete_others = tuple(name for name in self.others if prototype[name]["fn"].support.is_discrete)
        self.deterministic = tuple(name for name, site in prototype.items() if site["type"] == "deterministic")
        sampled = {name: site for name, site in prototype.items() if site["type"] == "sample"}
        self.event_dims = {name: site["fn"].event_dim for name, site in sampled.items()}
        self.likelihoods = {name: likelihood_name(site) for name, site in sampled.items()}
        return x, others

    def _at(self, arrays: list, x: Values, others: Values) -> Traced:
        """One run at given values of all latent sites."""
        sites, diffusions = self._run(jax.random.key(0), arrays, {**x, **others})
        names = [site.name for site in self.sites]
        sampled = {name: site for name, site in sites.items() if site["type"] == "sample"}
        return Traced(
            log_probs={
                name: site_log_prob(site, self._estimated.setdefault(name, []))
                for name, site in sampled.items()
                if name not in names
            },
            chains={name: diffusions[name].chain for name in names},
            errors={name: errors for name in names if (errors := diffusions[name].diffusion.errors) is not None},
            transformed={site.name: sites[site.name]["value"] for site in self.sites if site.is_transformed},
            normal={name: normal_site(site) for name, site in sampled.items() if name not in names},
            nearest={name: nearest_normal(site) for name, site in sampled.items() if name not in names},
            deterministic={name: jnp.asarray(sites[name]["value"]) for name in self.deterministic},
            observed={name: jnp.asarray(site["value"]) for name, site in sampled.items() if site["is_observed"]},
            seen={name: unmask(site["fn"])[1] for name, site in sampled.items() if site["is_observed"]},
        )

    def _draw(self, key: jax.Array, arrays: list, x: Values) -> dict[str, Array]:
        """Other latent sites drawn from their prior, given x."""
        sites, _ = self._run(key, arrays, x)
        return {name: jnp.asarray(sites[name]["value"]) for name in self.others}

    def _find_dependences(self) -> dict[str, frozenset[str]]:
        """For each sample site, on which latent sites its chain (a diffusion) or its density (any other) depends.

        For each transformed site also, in ``transforms_depend``, on which other ones its transform does.
        """
        traced = jax.tree.unflatten(self.given.structure, list(range(len(self.given.jaxpr.outvars))))
        outputs = {name: [index] for name, index in traced.log_probs.items()}
        outputs |= {name: jax.tree.leaves(chain) for name, chain in traced.chains.items()}
        self.transforms_depend = {name: self._inputs_of([index]) - {name} for name, index in traced.transformed.items()}
        return {name: self._inputs_of(indices) for name, indices in outputs.items()}

    def _inputs_of(self, outputs: list[int]) -> frozenset[str]:
        """The latent sites on which some results of ``given`` depend."""
        used = used_inputs(self.given.jaxpr, set(outputs))[self._num_arrays :]
        return frozenset(name for name, is_used in zip(self._inputs, used, strict=True) if is_used)

    def _check_not_nested(self) -> None:
        names = {site.name for site in self.sites}
        for site in self.sites:
            above = self.depends[site.name] & names
            if above:
                raise ValueError(
                    expected(
                        f"a distribution of diffusion site {site.name!r} that depends on no other diffusion site",
                        f"one that depends on {sorted(above)}",
                        "Particle engines walk all chains together; use DiffusionReparam with NUTS.",
                    )
                )

    def _check_estimated(self) -> None:
        """Refuse a bound that would be taken for a density: that of an observed diffusion, wherever it is held."""
        for name, diffusions in self._estimated.items():
            above = sorted(self.depends[name] - {name})
            estimators = [diffusion.estimator for diffusion in diffusions]
            if above and not all(isinstance(estimator, AsDensity) for estimator in estimators):
                raise ValueError(depends_on_latent(name, f"one that depends on {above}"))
            refuse_unnamed(name, diffusions)

    def _find_elements(self, elements: str) -> tuple[Shape, str]:
        if elements not in ("auto", "independent", "joint"):
            raise ValueError(
                expected("elements 'auto', 'independent' or 'joint'", repr(elements), "Choose one of these names.")
            )
        if elements == "joint":
            return (), "told so"
        shape, names = self.sites[0].batch_shape, {site.name for site in self.sites}
        jaxpr = self.given.jaxpr
        outputs = jax.tree.unflatten(self.given.structure, list(range(len(jaxpr.outvars)))).log_probs
        reason = ""
        if any(site.batch_shape != shape for site in self.sites):
            reason = "the diffusion sites have different plates"
        elif not shape:
            reason = "no diffusion site is in a plate"
        for name, index in outputs.items():
            if not reason and self.depends[name] & names and not has_elements(jaxpr.outvars[index].aval.shape, shape):
                reason = f"site {name!r} depends on the elements of the plate together"
        if elements == "independent":
            if reason:
                raise ValueError(
                    expected("elements that the likelihood does not couple", reason, "Say elements='joint'.")
                )
            return shape, "told so"
        if not reason:
            # Only x varies over elements: arrays and other sites are the same for all of them.
            is_x = [False] * self._num_arrays + [name in names for name in self._inputs]
            reason = why_coupled(jaxpr, is_x, {index: name for name, index in outputs.items()}, shape)
        return ((), reason) if reason else (shape, "proved from the model's operations")
