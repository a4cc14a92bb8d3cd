r"""A NumPyro model, traced once, as functions of arrays: its diffusion sites and everything else.

For diffusion sites x, other latent sites theta and observations y the joint density is

    p(x) r(x, theta),     log r = sum of log_prob over all sites that are no diffusion, priors of theta included.

An engine needs p's chains and log r. The user's model is run on abstract values of its arguments' shapes, never again
for arguments of the same shapes: what it does becomes a jaxpr (a program of array operations), and every question of
an engine is an evaluation of that. So any model works: several diffusion sites, plates, chains that depend on theta,
any likelihood.

Of a transformed diffusion, T(x), x is the state of its chain here: T is part of the model's function of the state, so
that no Jacobian arises, and T may depend on theta. :meth:`SplitModel.outputs` are the values T(x), in the model's own
units.

Arrays that the model closes over, a network's parameters among them, are arguments of the program and no constants.

Not assumed: that theta is continuous, or independent of x.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro.handlers import seed, substitute, trace

from .._checks import check_finite, expected, is_concrete
from .._compat.jax import evaluate_jaxpr, used_inputs
from .._pytree import register_pytree
from .._typing import Array, PyTree, Shape
from ..chains import ReverseChain
from ..diffusion import depends_on_latent, has_no_name
from ..estimates import AsDensity
from ..wrappers import WrappedDiffusion, find_diffusions, unmask, wrapped_diffusion
from .arguments import NEEDS_VALUES, Static, join, split_arguments, without_arrays
from .independence import by_element, has_elements, why_coupled
from .observations import (
    NormalSite,
    Observation,
    has_nan,
    likelihood_name,
    normal_site,
    observation,
    refuse_nan,
)
from .sites import (
    DiffusionSite,
    check_proper,
    check_trained,
    diffusion_sites,
    is_latent,
    site_log_prob,
)

__all__ = ["LogFactor", "Programs", "SplitModel", "Values", "split_model"]

Values = Mapping[str, Any]


class LogFactor(NamedTuple):
    """log r: one term for each element, and what is not of one element."""

    elements: Array
    shared: Array


class _Traced(NamedTuple):
    """What one run of the model gives, at values of its latent sites."""

    log_probs: dict[str, Array]  # of every sample site that is no diffusion, scaled
    chains: dict[str, ReverseChain]  # of the diffusion sites
    transformed: dict[str, Array]  # values of the transformed ones
    normal: dict[str, NormalSite | None]  # the same sites, where they are Normal
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


class _Program:
    """A model at arguments of given shapes. Hashable by identity: compiled functions keep it as static.

    Args:
        model: a NumPyro model.
        static: its arguments that are no arrays.
        arrays: those that are, or anything of their shapes.
        elements: ``"auto"`` (proved), ``"independent"`` (told so), or ``"joint"``.
    """

    def __init__(self, model: Callable, static: Static, arrays: list, elements: str) -> None:
        self._model, self.static = model, static
        blank = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), arrays)
        key = jax.eval_shape(lambda: jax.random.key(0))
        # Run on abstract values: a random state may be where the likelihood is not defined.
        x, others = jax.eval_shape(self._look, key, blank)
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
        with numpyro.handlers.block():
            sites = trace(substitute(seed(self._model, key), substitute_fn=fill)).get_trace(*args, **kwargs)
        return sites, diffusions

    def states(self, arrays: list, values: Values) -> dict[str, Array]:
        """The states of diffusion sites at given values, see :meth:`SplitModel.states`."""
        _, diffusions = self._run(jax.random.key(0), arrays, {})
        found = {}
        for name, value in values.items():
            wrapped = diffusions[name]
            shape = jax.eval_shape(wrapped.value, jax.ShapeDtypeStruct(wrapped.state_shape, float)).shape
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
        names = {site.name for site in self.sites}
        x = {name: diffusions[name].diffusion.kernel.some_state(key, diffusions[name].state_shape) for name in names}
        latent = {name: jnp.asarray(site["value"]) for name, site in prototype.items() if is_latent(site)}
        others = {name: value for name, value in latent.items() if name not in names}
        self.others = tuple(others)
        self.discrete_others = tuple(name for name in self.others if prototype[name]["fn"].support.is_discrete)
        self.deterministic = tuple(name for name, site in prototype.items() if site["type"] == "deterministic")
        sampled = {name: site for name, site in prototype.items() if site["type"] == "sample"}
        self.event_dims = {name: site["fn"].event_dim for name, site in sampled.items()}
        self._estimated = {name: find_diffusions(site["fn"]) for name, site in sampled.items() if name not in names}
        self.likelihoods = {name: likelihood_name(site) for name, site in sampled.items()}
        return x, others

    def _at(self, arrays: list, x: Values, others: Values) -> _Traced:
        """One run at given values of all latent sites."""
        sites, diffusions = self._run(jax.random.key(0), arrays, {**x, **others})
        names = {site.name for site in self.sites}
        sampled = {name: site for name, site in sites.items() if site["type"] == "sample"}
        return _Traced(
            log_probs={name: site_log_prob(site) for name, site in sampled.items() if name not in names},
            chains={name: diffusions[name].chain for name in names},
            transformed={site.name: sites[site.name]["value"] for site in self.sites if site.is_transformed},
            normal={name: normal_site(site) for name, site in sampled.items() if name not in names},
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
        """Refuse a bound that would be taken for a density: that of an observed diffusion."""
        for name, diffusions in self._estimated.items():
            above = sorted(self.depends[name] - {name})
            estimators = [diffusion.estimator for diffusion in diffusions]
            if above and not all(isinstance(estimator, AsDensity) for estimator in estimators):
                raise ValueError(depends_on_latent(name, f"one that depends on {above}"))
            if None in estimators:
                raise ValueError(has_no_name(f"the observed site {name!r}, a constant of the evidence"))

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


@register_pytree(data=("arrays", "given_consts", "drawn_consts"), static=("program",))
class SplitModel:
    """A model with its arguments: diffusion sites, and the factor r that multiplies their distribution.

    A pytree whose leaves are the arguments' arrays, so that compiled functions take it as an argument.

    Attributes:
        sites: the latent diffusion sites, in the model's order.
        others: names of the other latent sites; ``discrete_others`` those of them with discrete support.
        deterministic: names of deterministic sites.
        has_outputs: whether the model has deterministic or transformed sites.
        element_shape: E when elements are filtered one by one, else ().
        reason: why they are or are not, in words.
    """

    def __init__(self, program: _Program, arrays: list) -> None:
        self.program = program
        self.arrays = arrays
        self.given_consts, self.drawn_consts = program.given_consts, program.drawn_consts

    @property
    def arguments(self) -> tuple[tuple, dict[str, Any]]:
        """The model's positional and keyword arguments."""
        return join(self.arrays, self.program.static)

    @property
    def sites(self) -> tuple[DiffusionSite, ...]:
        return self.program.sites

    @property
    def others(self) -> tuple[str, ...]:
        return self.program.others

    @property
    def discrete_others(self) -> tuple[str, ...]:
        return self.program.discrete_others

    @property
    def deterministic(self) -> tuple[str, ...]:
        return self.program.deterministic

    @property
    def has_outputs(self) -> bool:
        return bool(self.deterministic) or any(site.is_transformed for site in self.sites)

    @property
    def element_shape(self) -> Shape:
        return self.program.element_shape

    @property
    def reason(self) -> str:
        return self.program.reason

    @property
    def num_steps(self) -> int:
        """The longest chain's T."""
        return max(site.num_steps for site in self.sites)

    def some_x(self, key: jax.Array) -> dict[str, Array]:
        """Some states of the diffusion sites, no draws of them."""
        return {
            site.name: jax.random.normal(k, site.shape)
            if site.num_states is None
            else jax.random.randint(k, site.shape, 0, site.num_states)
            for site, k in zip(self.sites, jax.random.split(key, len(self.sites)), strict=True)
        }

    def draw_others(self, key: jax.Array, x: Values | None = None) -> tuple[dict[str, Array], Array]:
        """Other latent sites drawn from their prior, with the log density at which they were drawn.

        Sites whose prior depends on x are drawn at one of the given x, and their density is the mixture over all of
        them: at a single x it says nothing of where other x lead, and the weights would have no finite variance.

        Args:
            key: randomness.
            x: draws of the diffusion sites, (M, site shape...); None for some random x.
        """
        if self.program.drawn is None:
            return {}, jnp.zeros(())
        if not x or not self.others_depend_on_x():
            one = self.some_x(jax.random.fold_in(key, 1))
            others = self._draw(key, one)
            return others, self._log_prior(one, others)
        key_x, key_draw = jax.random.split(key)
        count = len(next(iter(x.values())))
        index = jax.random.randint(key_x, (), 0, count)
        others = self._draw(key_draw, {name: draws[index] for name, draws in x.items()})
        log_densities = jax.vmap(lambda x: self._log_prior(x, others))(dict(x))
        return others, jax.nn.logsumexp(log_densities) - jnp.log(count)

    def others_depend_on_x(self) -> bool:
        """Whether the prior of another latent site depends on a diffusion site."""
        names = {site.name for site in self.sites}
        return any(self.program.depends[name] & names for name in self.others)

    def chains(self, others: Values) -> dict[str, ReverseChain]:
        """The chain of each diffusion site, given the other sites."""
        return self._at(self.some_x(jax.random.key(0)), others).chains

    def log_factor(self, x: Values, others: Values) -> LogFactor:
        """The factor log r(x, theta) in nats: shape E for the elements, () for what they share."""
        elements, shared = jnp.zeros(self.element_shape), jnp.zeros(())
        for log_prob in self._at(x, others).log_probs.values():
            term = by_element(log_prob, self.element_shape)
            if term is None:
                shared = shared + log_prob.sum()
            else:
                elements = elements + term
        return LogFactor(elements, shared)

    def shared_factor(self, others: Values) -> Array:
        """The part of log r that depends on no diffusion site, (): 0 where elements are filtered together."""
        if not self.element_shape:
            return jnp.zeros(())
        return self.log_factor(self.some_x(jax.random.key(0)), others).shared

    def states(self, values: Values) -> dict[str, Array]:
        """The chains' states of diffusion sites whose values are given, in the model's units; it runs the model.

        Args:
            values: by site, of one chain.

        Raises:
            ValueError: for a value of another shape, one outside of the support, and where the transform depends on
                another latent site, whose value is not known.
        """
        depend = {name: sorted(self.program.transforms_depend.get(name, ())) for name in values}
        for name, above in depend.items():
            if above:
                raise ValueError(
                    expected(
                        f"a transform at site {name!r} that depends on no other latent site, for a given value",
                        f"one that depends on {above}",
                        "Leave the site out of init_params.",
                    )
                )
        return self.program.states(self.arrays, values)

    def seen(self, x: Values, others: Values) -> dict[str, NormalSite | None]:
        """The sites, other than diffusions, whose density depends on a diffusion site; None where not Normal."""
        names = {site.name for site in self.sites}
        return {n: site for n, site in self._at(x, others).normal.items() if self.program.depends[n] & names}

    def observation(self, x: Values, others: Values) -> Observation:
        """What is seen of every element's x, for Normal likelihoods.

        Raises:
            TypeError: for another likelihood.
            ValueError: if no site depends on a diffusion site.
        """
        seen = self.seen(x, others)
        for name, site in seen.items():
            if site is None:
                raise TypeError(
                    expected(
                        f"a Normal or MultivariateNormal likelihood at site {name!r} for the gaussian twist",
                        self.program.likelihoods[name],
                        "Use twist='tempered', which takes any likelihood.",
                    )
                )
        return observation(seen, self.element_shape)

    def chains_depend_on_others(self) -> bool:
        """Whether the chain of a diffusion site depends on another latent site."""
        return any(self.program.depends[site.name] for site in self.sites)

    def outputs(self, values: Values) -> dict[str, Array]:
        """The model's transformed diffusion sites and its deterministic ones, in the model's own units.

        Args:
            values: states of the diffusion sites, values of the other latent ones; more does not matter.
        """
        x = {site.name: values[site.name] for site in self.sites}
        traced = self._at(x, {name: values[name] for name in self.others})
        return {**traced.transformed, **traced.deterministic}

    def site_values(self, x: Values) -> dict[str, Array]:
        """The diffusion sites in the model's units, whose transforms depend on no other site."""
        if not any(site.is_transformed for site in self.sites):
            return dict(x)
        return {**x, **self._at(x, self.draw_others(jax.random.key(0))[0]).transformed}

    def observations(self) -> dict[str, Array]:
        """Observed sites and their values."""
        x = self.some_x(jax.random.key(0))
        return self._at(x, self.draw_others(jax.random.key(0))[0]).observed

    def check_observed(self) -> None:
        """Refuse an observed NaN that enters the likelihood.

        A NaN behind a mask does not enter it. Where arguments are traced nothing can be looked at.

        Raises:
            ValueError: with the site and the first index.
        """
        leaves = jax.tree.leaves(self)
        if not is_concrete(leaves) or not any(has_nan(leaf) for leaf in leaves):
            return
        observed, seen, log_probs = jax.device_get(_observed(self))
        refuse_nan(observed, seen, log_probs, self.program.event_dims)

    def _at(self, x: Values, others: Values) -> _Traced:
        return self.program.given(self.given_consts, self.arrays, dict(x), {name: others[name] for name in self.others})

    def _draw(self, key: jax.Array, x: Values) -> dict[str, Array]:
        drawn: Any = self.program.drawn
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)  # the program was traced for keys of the new kind
        return drawn(self.drawn_consts, key, self.arrays, dict(x))

    def _log_prior(self, x: Values, others: Values) -> Array:
        log_probs = self._at(x, others).log_probs
        return sum((log_probs[name].sum() for name in self.others), jnp.zeros(()))


@jax.jit
def _observed(split: SplitModel) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Observed values, what masks let through of them, and the log_prob of every site at some state."""
    key_x, key_others = jax.random.split(jax.random.key(0))
    x = split.some_x(key_x)
    traced = split._at(x, split.draw_others(key_others)[0])
    return traced.observed, traced.seen, traced.log_probs


class Programs:
    """Programs of one model, kept by the shapes of its arguments; what an engine holds.

    Args:
        model: a NumPyro model.
        elements: as for :func:`split_model`.
    """

    def __init__(self, model: Callable, elements: str = "auto") -> None:
        self.model = model
        self.elements = elements
        self._programs: dict[Any, _Program] = {}
        self._need_values: set[Any] = set()

    def bind(self, args: tuple, kwargs: Values) -> SplitModel:
        """The model with its arguments; the model runs only for shapes and values that it has not seen.

        Raises:
            ValueError: for a model without a latent diffusion site, a subsampled plate, a scaled, masked or nested
                diffusion site, a parameter without value, an observation whose shape does not fit, or an observed NaN.
        """
        arrays, static = split_arguments(args, kwargs)
        if (static, _shapes(arrays)) not in self._need_values:
            try:
                return self._of(arrays, static)
            except NEEDS_VALUES:
                # The model asks for values (the largest of some group numbers, as the size of a plate).
                if not is_concrete(arrays):
                    raise
                self._need_values.add((static, _shapes(arrays)))
        return self._of(*without_arrays(arrays, static))

    def _of(self, arrays: list, static: Static) -> SplitModel:
        shapes = _shapes(arrays)
        program = self._programs.get((static, shapes))
        if program is None:
            program = _Program(self.model, static, arrays, self.elements)
            if is_concrete((program.given_consts, program.drawn_consts)):
                self._programs[static, shapes] = program
        split = SplitModel(program, arrays)
        split.check_observed()
        return split

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": {}, "_need_values": set()}


def _shapes(arrays: list) -> tuple:
    return tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(arrays))


def split_model(model: Callable, args: tuple, kwargs: Values, *, elements: str = "auto") -> SplitModel:
    """A model split into its diffusion sites and everything else.

    Args:
        model: a NumPyro model.
        args: its arguments; they may be tracers.
        kwargs: its keyword arguments.
        elements: ``"auto"`` (independent where it is proved), ``"independent"`` (told so), or ``"joint"``.
    """
    return Programs(model, elements).bind(args, kwargs)
