r"""Where a model that is not linear in x is linearised: near the mode of its posterior.

The prior is taken as N(m, C): m the mean of draws, C the covariance of the network's errors at the noisiest step, which
are the prior's own spread. With A the slope of the numbers that guide at x, in units of their noise there, and r their
residual, a step of Gauss-Newton is

    x*  =  m + C A^T (A C A^T + I)^{-1} (r + A (x - m))

and of x, x* and points between them that one is kept, for each element of a plate, at which

    J(x)  =  log p(y | x, o)  -  (x - m)^T C^{-1} (x - m) / 2

is largest: the search never ends below its start. It starts at m, and at draws of the prior, which may end elsewhere:
a likelihood that bends (x^2, a magnitude) has several modes. Other latent sites are held where they are. A mode is a
place that is about right; guidance is corrected whatever it is, but it hides a mode of which its numbers know nothing.
:func:`is_hidden` asks for places x' as high as the mode x_0 of the guidance, but for a few nats, where

    log p(y | x', o) - log p(y | x_0, o)     is above     (|r|^2 - |r - A (x' - x_0)|^2) / 2

by a few nats: what is likely there is unlikely by the linearised numbers.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .._typing import Array
from ..guidance import ErrorCovariance
from ..guidance.spectrum import Spectrum
from .linearised import Slopes, reduced, slopes
from .program import Values
from .split import SplitModel

__all__ = ["is_hidden", "posterior_modes"]

_NUM_STEPS = 10
_NATS = 5.0  # a mode of that much less is no part of the posterior; a place that much underrated is hidden
_FRACTIONS = (0.0, 0.05, 0.25, 1.0)  # of a step: 0 is to stay


@partial(jax.jit, static_argnums=(1, 2))
def posterior_modes(
    split: SplitModel,
    name: str,
    guide: tuple[str, ...],
    states: Values,
    others: Values,
    errors: ErrorCovariance,
    starts: Array,
) -> tuple[Array, Array]:
    """Values of one diffusion site near modes of its posterior, of the shape of the starts, and J there, (n, E...).

    Args:
        split: the model.
        name: of the site.
        guide: sites that guide it.
        states: of all diffusion sites; of this one, the prior's mean.
        others: values of the other latent sites.
        errors: of the site's prior.
        starts: where searches begin, (n, shape of the site).
    """
    mean = states[name]
    errors = errors.at_levels([len(errors.diagonal)])
    elements = split.element_shape

    def objective(x: Array) -> Array:
        """J, of each element."""
        away = errors.blocks((x - mean).reshape((*elements, -1)))
        square = errors.at(1).square(away).sum(-1)
        height = _log_likelihood(split, {**states, name: x}, others) - square / 2
        return jnp.where(jnp.isnan(height), -jnp.inf, height)

    def step(x: Array, _: None) -> tuple[Array, None]:
        found = slopes(split, name, guide, {**states, name: x}, others)
        basis, rows = reduced(found.rows, len(elements))
        residual = found.residual if basis is None else jnp.einsum("...mk,...m->...k", basis, found.residual)
        flat, centre = (point.reshape((*elements, -1)) for point in (x, mean))
        spectrum = Spectrum(errors, errors.blocks(rows))
        left = residual + spectrum.image(flat - centre)
        target = centre + spectrum.at(1, left, jnp.ones(elements), jnp.ones(elements))[0]
        target = jnp.where(jnp.isfinite(target).all(-1, keepdims=True), target, flat)
        tried = jnp.stack([flat + fraction * (target - flat) for fraction in _FRACTIONS])
        best = jnp.argmax(jax.vmap(objective)(tried.reshape((-1, *x.shape))), axis=0)
        return jnp.take_along_axis(tried, best[None, ..., None], axis=0)[0].reshape(x.shape), None

    def search(start: Array) -> tuple[Array, Array]:
        end = jax.lax.scan(step, start, None, length=_NUM_STEPS)[0]
        return end, objective(end)

    return jax.lax.map(search, starts)


@partial(jax.jit, static_argnums=1)
def is_hidden(split: SplitModel, name: str, found: Slopes, others: Values, modes: Array, heights: Array) -> Array:
    """Whether guidance made at the first of some modes hides another one, of any element: a boolean ().

    Args:
        split: the model.
        name: of the site.
        found: the model linearised at the first mode.
        others: values of the other latent sites.
        modes: as :func:`posterior_modes` gives them.
        heights: J there.
    """
    elements = split.element_shape
    log_likelihoods = jax.lax.map(lambda x: _log_likelihood(split, {**found.states, name: x}, others), modes)
    moved = (modes - modes[0]).reshape((len(modes), *elements, -1))
    left = found.residual - jnp.einsum("...kd,n...d->n...k", found.rows, moved)
    told = ((found.residual**2).sum(-1) - (left**2).sum(-1)) / 2
    is_underrated = log_likelihoods - log_likelihoods[0] - told > _NATS
    return (is_underrated & (heights > heights[0] - _NATS)).any()


def _log_likelihood(split: SplitModel, states: Values, others: Values) -> Array:
    """Of each element, nats."""
    total = split.log_factor(states, others)
    return total.elements if split.element_shape else total.elements + total.shared
