r"""Where a model that is not linear in x is linearised: near the mode of its posterior.

The prior is taken as N(m, C): m the mean of draws, C = U U^T + D the network's errors at the noisiest step, which are
the prior's own spread. With A the slope of the numbers that guide at x, in units of their noise there, and r their
residual, a step of Gauss-Newton is

    x*  =  m + C A^T (A C A^T + I)^{-1} (r + A (x - m))

and of x, x* and points between them that one is kept, for each element of a plate, at which

    J(x)  =  log p(y | x, o)  -  (x - m)^T C^{-1} (x - m) / 2

is largest: the search never ends below its start, m. Other latent sites are held where they are. It is a place that is
about right; guidance is corrected whatever it is.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .._small_matrices import symmetric
from .._typing import Array
from ..guidance import ErrorCovariance
from ..guidance.spectrum import Spectrum
from .linearised import reduced, slopes
from .program import Values
from .split import SplitModel

__all__ = ["posterior_mode"]

_NUM_STEPS = 10
_FRACTIONS = (0.0, 0.05, 0.25, 1.0)  # of a step: 0 is to stay


@partial(jax.jit, static_argnums=(1, 2))
def posterior_mode(
    split: SplitModel, name: str, guide: tuple[str, ...], states: Values, others: Values, errors: ErrorCovariance
) -> Array:
    """A value of one diffusion site near the mode of its posterior, of the site's shape.

    Args:
        split: the model.
        name: of the site.
        guide: sites that guide it.
        states: of all diffusion sites; of this one, the prior's mean.
        others: values of the other latent sites.
        errors: of the site's prior.
    """
    mean = states[name]
    factor, diagonal = errors.factor[-1:], errors.diagonal[-1:]
    elements = split.element_shape

    def objective(x: Array) -> Array:
        """J, of each element."""
        away = errors.blocks((x - mean).reshape((*elements, -1)))
        scaled = away / diagonal[0]
        inner = jnp.eye(factor.shape[-1]) + symmetric(factor[0].T @ (factor[0] / diagonal[0][:, None]))
        along = scaled @ factor[0]
        solved = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(inner), along[..., None])[..., 0]
        square = (away * scaled).sum((-1, -2)) - (along * solved).sum((-1, -2))
        total = split.log_factor({**states, name: x}, others)
        log_likelihood = total.elements if elements else total.elements + total.shared
        height = log_likelihood - square / 2
        return jnp.where(jnp.isnan(height), -jnp.inf, height)

    def step(x: Array, _: None) -> tuple[Array, None]:
        found = slopes(split, name, guide, {**states, name: x}, others)
        basis, rows = reduced(found.rows, len(elements))
        residual = found.residual if basis is None else jnp.einsum("...mk,...m->...k", basis, found.residual)
        flat, centre = (point.reshape((*elements, -1)) for point in (x, mean))
        spectrum = Spectrum(factor, diagonal, errors.blocks(rows))
        left = residual + spectrum.image(flat - centre)
        target = centre + spectrum.at(1, left, jnp.ones(elements), jnp.ones(elements))[0]
        target = jnp.where(jnp.isfinite(target).all(-1, keepdims=True), target, flat)
        tried = jnp.stack([flat + fraction * (target - flat) for fraction in _FRACTIONS])
        best = jnp.argmax(jax.vmap(objective)(tried.reshape((-1, *x.shape))), axis=0)
        return jnp.take_along_axis(tried, best[None, ..., None], axis=0)[0].reshape(x.shape), None

    return jax.lax.scan(step, mean, None, length=_NUM_STEPS)[0]
