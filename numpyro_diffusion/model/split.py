r"""A NumPyro model with its arguments, as an engine sees it: diffusion sites, and the factor r beside them.

For diffusion sites x, other latent sites theta and observations y the joint density is

    p(x) r(x, theta),     log r = sum of log_prob over all sites that are no diffusion, priors of theta included.

An engine needs p's chains and log r. Every question is an evaluation of the model's :class:`~.program.Program`, so any
model works: several diffusion sites, plates, chains that depend on theta, any likelihood.

Of a transformed diffusion, T(x), x is the state of its chain here: T is part of the model's function of the state, so
that no Jacobian arises, and T may depend on theta. :meth:`SplitModel.outputs` are the values T(x), in the model's own
units.

Not assumed: that theta is continuous, or independent of x.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._checks import expected, is_concrete
from .._pytree import register_pytree
from .._typing import Array, Shape
from .._weights import log_mean_exp
from ..chains import ReverseChain
from ..guidance import ErrorCovariance
from .arguments import NEEDS_VALUES, Static, join, split_arguments, without_arrays
from .independence import by_element
from .observations import NormalSite, Observation, has_nan, observation, refuse_nan
from .program import Program, Traced, Values
from .sites import DiffusionSite

__all__ = ["LogFactor", "Programs", "SplitModel", "split_model"]


_MANY = 10  # sets of arguments that one engine is compiled for: more than anyone writes down, as in a loop
_RECOMPILES = (
    f"An engine is compiled for the {_MANY}th set of arguments: for every new shape, and every new Python number or "
    "string. Pass numbers as arrays (jnp.asarray) and data of one shape, masked where they are shorter."
)


class LogFactor(NamedTuple):
    """log r: one term for each element, and what is not of one element."""

    elements: Array
    shared: Array


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

    def __init__(self, program: Program, arrays: list) -> None:
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
        return others, log_mean_exp(log_densities)

    def others_depend_on_x(self) -> bool:
        """Whether the prior of another latent site depends on a diffusion site."""
        names = {site.name for site in self.sites}
        return any(self.program.depends[name] & names for name in self.others)

    def chains(self, others: Values) -> dict[str, ReverseChain]:
        """The chain of each diffusion site, given the other sites."""
        return self._at(self.some_x(jax.random.key(0)), others).chains

    def errors(self, others: Values) -> dict[str, ErrorCovariance]:
        """The covariance of the network's errors, of each diffusion site whose prior carries it."""
        return self._at(self.some_x(jax.random.key(0)), others).errors

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

    def nearly_normal(self, x: Values, others: Values) -> dict[str, NormalSite | None]:
        """The same sites as the Normal ones nearest to them; None where there is none."""
        names = {site.name for site in self.sites}
        return {n: site for n, site in self._at(x, others).nearest.items() if self.program.depends[n] & names}

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

    def _at(self, x: Values, others: Values) -> Traced:
        return self.program.given(self.given_consts, self.arrays, dict(x), {name: others[name] for name in self.others})

    def _draw(self, key: jax.Array, x: Values) -> dict[str, Array]:
        drawn: Any = self.program.drawn
        return drawn(self.drawn_consts, self.program.key_of_its_kind(key), self.arrays, dict(x))

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
        self._programs: dict[Any, Program] = {}
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
            program = Program(self.model, static, arrays, self.elements)
            if is_concrete((program.given_consts, program.drawn_consts)):
                self._programs[static, shapes] = program
                if len(self._programs) == _MANY:
                    warnings.warn(_RECOMPILES, stacklevel=4)
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
