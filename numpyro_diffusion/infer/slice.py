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
from jax.flatten_util import ravel_pytree

from .._typing import Array
from ..model.reference import NormalReference
from .noise_kernel import NoiseKernel

__all__ = ["EllipticalSlice", "EllipticalSliceState"]

# A bracket wider than the rounding unit of float64 is left after so many shrinks less than once in 1e6 draws.
_MAX_SHRINKS = 150


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


class EllipticalSlice(NoiseKernel):
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

    def __init__(self, model: Callable) -> None:
        super().__init__(model)

    def get_diagnostics_str(self, state: EllipticalSliceState) -> str:
        return f"{float(state.mean_num_evaluations):.1f} likelihood evaluations a draw"

    def refresh(self, state: EllipticalSliceState, model_args: tuple, model_kwargs: Any) -> EllipticalSliceState:
        return state._replace(log_likelihood=self._reference(model_args, model_kwargs).log_likelihood(state.z))

    def _first_state(
        self, reference: NormalReference, num_warmup: int, z: dict[str, Array], log_likelihood: Array, rng_key: Array
    ) -> EllipticalSliceState:
        count, mean = jnp.zeros((), int), jnp.zeros((), float)
        return EllipticalSliceState(count, z, log_likelihood, count, mean, rng_key)

    def _step(self, reference: NormalReference, state: EllipticalSliceState) -> EllipticalSliceState:
        return _slice_step(reference.log_likelihood, state)


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
