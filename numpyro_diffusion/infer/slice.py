r"""Elliptical slice sampling of a model whose diffusion sites are functions of standard normal noises.

Let u be all latent sites, unconstrained, with each diffusion site x as its noises ``x_noise``. The target is

    pi(u)  proportional to  N(u; 0, I) L(u),     log L(u) = log density(u) - log N(u; 0, I).

For the noises L is just the likelihood, for their prior is the N(0, I). For any other latent site L is the likelihood
times its own prior density over N(0, 1), so that it too is drawn exactly
(see :mod:`numpyro_diffusion.model.reference`).
One draw from u:

    nu ~ N(0, I),   log y = log L(u) - Exponential(1),   u(angle) = u cos(angle) + nu sin(angle)
    angle ~ Uniform(0, 2 pi),  bracket [angle - 2 pi, angle]
    until log L(u(angle)) >= log y: shrink the bracket to angle on its side of 0, draw angle from what is left.

It leaves pi invariant for any L: no gradient, no step size, nothing to adapt. A point where the density is 0, infinite
or NaN is never moved to. The bracket shrinks to the current point, half a nat a time in the mean; after 150 times it
is below the rounding of u in float32 and float64, and the draw stays where it is.

Assumed: real latent sites, a model that is a function of its arguments. Not assumed: a differentiable likelihood.
What it is not good at: modes far apart, as every local sampler; and a site far from N(0, 1) in unconstrained
space, as Normal(100, 10) is, which is moved exactly but in small steps. Write it as 100 + 10 z, z ~ N(0, 1).

References: Murray, Adams and MacKay 2010, Figure 2.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer.mcmc import MCMCKernel

from .._checks import expected, is_concrete
from .._compat.numpyro import GIBBS_SITES_KWARG, is_prng_key, transform_fn
from .._typing import Array
from ..model.arguments import Static, as_static
from ..model.observations import check_observed
from ..model.reference import NormalReference, Values

__all__ = ["EllipticalSlice", "EllipticalSliceState"]

# A bracket wider than the rounding unit of float64 is left after so many shrinks less than once in 1e6 draws.
_MAX_SHRINKS = 150
_MAX_STARTS = 100  # draws from the prior that are tried as a starting point, as many as NumPyro tries


class EllipticalSliceState(NamedTuple):
    """State of :class:`EllipticalSlice`; all fields but ``z`` are numbers, one for each chain.

    Attributes:
        i: draws made.
        z: unconstrained values of the latent sites, diffusion sites as ``x_noise``.
        log_likelihood: log L(z) in nats: what the density has on top of N(z; 0, I).
        num_evaluations: evaluations of the model for this draw.
        mean_num_evaluations: their mean over all draws.
        rng_key: key of the next draw.
    """

    i: Array
    z: dict[str, Array]
    log_likelihood: Array
    num_evaluations: Array
    mean_num_evaluations: Array
    rng_key: Array


class _Program(NamedTuple):
    """What is compiled for one set of model arguments, to be used again as long as they are the same."""

    arguments: Static
    start: Callable
    constrain: Callable


class EllipticalSlice(MCMCKernel):
    """MCMC kernel that draws all real latent sites together, diffusion sites through their noises.

    Latent :class:`Diffusion` sites with a Gaussian kernel are reparameterised here; a model in which
    :class:`DiffusionReparam` did so already is taken as well. As a block of :class:`numpyro.infer.Gibbs` it must be
    such a model, for all blocks name the same sites. ``MCMC`` then returns diffusion sites and noises, as with NUTS;
    ``extra_fields=("~z.x_noise", "num_evaluations")`` drops the noises and adds the cost of each draw.

    Args:
        model: a NumPyro model.

    Raises:
        TypeError: for a discrete latent site.
        ValueError: for a model without a latent diffusion site, with a subsampled plate or with untrained parameters.
        RuntimeError: if no starting point of finite density is found.

    >>> import numpyro
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> import numpyro.distributions as dist
    >>> kernel = GaussianKernel(schedules.log_snr(5), variance="upper")
    >>> prior = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, (2,)))
    >>> def model(y): numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0).to_event(1), obs=y)
    >>> mcmc = numpyro.infer.MCMC(EllipticalSlice(model), num_warmup=10, num_samples=20, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), jnp.array([1.0, -1.0]))
    >>> {name: value.shape for name, value in mcmc.get_samples().items()}
    {'x': (20, 2), 'x_noise': (20, 6, 2)}
    """

    sample_field = "z"

    def __init__(self, model: Callable) -> None:
        if not callable(model):
            raise TypeError(expected("a NumPyro model", repr(model), "Pass the function, with no potential."))
        self._model = model
        self._program: _Program | None = None

    @property
    def model(self) -> Callable:
        """The user's model."""
        return self._model

    @property
    def _sample_fn(self) -> Callable:
        """NumPyro's MCMC initialises a kernel, resumed or not, whose attribute of this name is None."""
        return self.sample

    def init(
        self, rng_key: Array, num_warmup: int, init_params: Any = None, model_args: tuple = (), model_kwargs: Any = None
    ) -> EllipticalSliceState:
        """The first state, at ``init_params`` or at a draw from the prior: one key, or a batch for as many chains.

        Args:
            rng_key: one key, or a batch of them.
            num_warmup: not used; warmup draws are draws like others.
            init_params: unconstrained values of every latent site, with the keys' batch in front; from a Gibbs
                kernel, constrained values.
            model_args: the model's arguments.
            model_kwargs: the model's keyword arguments.

        Raises:
            RuntimeError: if the density there is 0, infinite or NaN. Inside ``pmap`` (``chain_method="parallel"``)
                nothing can be raised; the chain's ``log_likelihood`` is then -inf.
        """
        start = self._prepare(model_args, model_kwargs).start
        is_single = is_prng_key(rng_key)
        state = start(rng_key, init_params) if is_single else jax.vmap(start)(rng_key, init_params)
        if is_concrete(state.log_likelihood) and not np.isfinite(state.log_likelihood).all():
            source = f"{_MAX_STARTS} draws from the prior" if init_params is None else "init_params"
            raise RuntimeError(
                expected(
                    "a starting point of finite density",
                    f"0, infinity or NaN at {source}",
                    "Look at the likelihood at draws from the prior (numpyro.infer.Predictive), or pass other "
                    "init_params, unconstrained values of every latent site.",
                )
            )
        return state

    def sample(self, state: EllipticalSliceState, model_args: tuple, model_kwargs: Any) -> EllipticalSliceState:
        step = partial(_slice_step, self._reference(model_args, model_kwargs).log_likelihood)
        return step(state) if is_prng_key(state.rng_key) else jax.vmap(step)(state)

    def postprocess_fn(self, model_args: tuple, model_kwargs: Any) -> Callable:
        return self._prepare(model_args, model_kwargs).constrain

    def get_diagnostics_str(self, state: EllipticalSliceState) -> str:
        return f"{float(state.mean_num_evaluations):.1f} likelihood evaluations a draw"

    def refresh(self, state: EllipticalSliceState, model_args: tuple, model_kwargs: Any) -> EllipticalSliceState:
        return state._replace(log_likelihood=self._reference(model_args, model_kwargs).log_likelihood(state.z))

    def wrap_model(self, wrapper: Callable) -> "EllipticalSlice":
        return type(self)(wrapper(self._model))

    def get_constrain_fn(self, model_args: tuple, model_kwargs: Any) -> Callable:
        return partial(transform_fn, self._reference(model_args, model_kwargs).transforms())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_program": None}

    def _prepare(self, model_args: tuple, model_kwargs: Values | None) -> _Program:
        """Compiled functions of these arguments: the ones kept, if nothing changed."""
        arguments = as_static(model_args, model_kwargs or {})
        program = self._program
        if program is not None and program.arguments == arguments:
            return program
        reference = self._reference(model_args, model_kwargs)
        check_observed(self._model, model_args, model_kwargs or {})
        program = _Program(arguments, jax.jit(partial(_start, reference)), jax.jit(reference.constrain))
        if is_concrete(arguments.leaves):
            self._program = program
        return program

    def _reference(self, model_args: tuple, model_kwargs: Values | None) -> NormalReference:
        return NormalReference(self._model, model_args, model_kwargs or {})


def _start(reference: NormalReference, rng_key: Array, init_params: Values | None) -> EllipticalSliceState:
    """The first state of one chain."""
    rng_key, search_key = jax.random.split(rng_key)
    prototype = jax.eval_shape(reference.prior_draw, search_key)

    def is_searching(search: tuple) -> Array:
        tries, _, _, log_likelihood = search
        return (tries < _MAX_STARTS) & ~jnp.isfinite(log_likelihood)

    def attempt(search: tuple) -> tuple:
        tries, key, _, _ = search
        key, draw_key = jax.random.split(key)
        z = reference.prior_draw(draw_key)
        return tries + 1, key, z, reference.log_likelihood(z)

    if init_params is None:
        blank = jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), prototype)
        start = (0, search_key, blank, jnp.asarray(-jnp.inf, float))
        _, _, z, log_likelihood = jax.lax.while_loop(is_searching, attempt, start)
    else:
        if GIBBS_SITES_KWARG in reference.kwargs:
            init_params = transform_fn(reference.transforms(), init_params, invert=True)
        z = _check_init_params(init_params, prototype)
        log_likelihood = reference.log_likelihood(z)
    count, mean = jnp.zeros((), int), jnp.zeros((), float)
    return EllipticalSliceState(count, z, log_likelihood, count, mean, rng_key)


def _slice_step(log_likelihood: Callable, state: EllipticalSliceState) -> EllipticalSliceState:
    """One draw of one chain; the model is evaluated once for each angle tried."""
    rng_key, nu_key, level_key, angle_key, shrink_key = jax.random.split(state.rng_key, 5)
    here, unravel = ravel_pytree(state.z)
    nu = jax.random.normal(nu_key, here.shape, here.dtype)
    level = state.log_likelihood - jax.random.exponential(level_key, dtype=state.log_likelihood.dtype)
    first = jax.random.uniform(angle_key, dtype=here.dtype, maxval=2 * math.pi)

    def point(angle: Array) -> dict[str, Array]:
        return unravel(here * jnp.cos(angle) + nu * jnp.sin(angle))

    def is_searching(search: tuple) -> Array:
        count, _, _, _, _, is_found = search
        return ~is_found & (count <= _MAX_SHRINKS)

    def attempt(search: tuple) -> tuple:
        count, angle, lower, upper, _, _ = search
        value = log_likelihood(point(angle))
        is_found = (value >= level) & jnp.isfinite(value)
        lower, upper = jnp.where(angle < 0, angle, lower), jnp.where(angle < 0, upper, angle)
        fraction = jax.random.uniform(jax.random.fold_in(shrink_key, count), dtype=here.dtype)
        return count + 1, jnp.where(is_found, angle, lower + fraction * (upper - lower)), lower, upper, value, is_found

    start = (jnp.zeros((), int), first, first - 2 * math.pi, first, state.log_likelihood, jnp.asarray(False))
    count, angle, _, _, value, is_found = jax.lax.while_loop(is_searching, attempt, start)
    mean = state.mean_num_evaluations
    return EllipticalSliceState(
        i=state.i + 1,
        z=jax.tree.map(partial(jnp.where, is_found), point(angle), state.z),
        log_likelihood=jnp.where(is_found, value, state.log_likelihood),
        num_evaluations=count,
        mean_num_evaluations=mean + (count.astype(mean.dtype) - mean) / (state.i + 1).astype(mean.dtype),
        rng_key=rng_key,
    )


def _check_init_params(init_params: Values, prototype: Values) -> dict[str, Array]:
    """Starting values in the dtypes of the sites.

    Raises:
        ValueError: if they are not of the model's latent sites and shapes.
    """
    found = {name: jnp.shape(value) for name, value in init_params.items()}
    wanted = {name: u.shape for name, u in prototype.items()}
    if found != wanted:
        raise ValueError(
            expected(
                f"init_params of shapes {wanted} for each chain",
                f"{found}",
                "A diffusion site 'x' is its noises 'x_noise'. In a Gibbs kernel give all blocks the model "
                "handlers.reparam(model, config={'x': DiffusionReparam()}) and name the site 'x_noise'.",
            )
        )
    return {name: jnp.asarray(init_params[name], u.dtype) for name, u in prototype.items()}
