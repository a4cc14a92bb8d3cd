r"""Guidance by Normal numbers of a model, whose mean, amplitude and noise follow the model's other unknowns.

Seen is y = g(x^0, o) + N(0, R(o)), o all other unknowns. With A_0 the slope of g in x^0 at a point x_0 and at some o_0,
and in units in which R(o_0) = I, what is taken is

    y - g(x_0, o) = a(o) A_0 (x^0 - x_0) + N(0, s^2(o) I)

whose left side, a and s are those of the current o. It is exact where g is linear in x^0, its slope is that of o_0 up
to a factor, and so is R. Elsewhere guidance is worse and no less valid: it is a function of o, and the ratio of p and q
corrects it (:mod:`numpyro_diffusion.model.reparam`).
"""

import jax.numpy as jnp
import numpyro.distributions as dist

from .._pytree import register_pytree
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from .base import check_normal
from .correlated_step import CorrelatedStep
from .path_posterior import PathPosterior
from .seen_coordinates import SeenCoordinates
from .spectrum import Spectrum, conditioned_step

__all__ = ["LinearisedGuidance"]


@register_pytree(data=("spectrum", "point", "residual", "amplitude", "noise"), static=())
class LinearisedGuidance:
    """Approximate: guidance by linearised numbers at the other unknowns' current values.

    Attributes:
        spectrum: of A_0, shape (E..., k, d), and the network's errors; E may be left out where all have the same. By a
            :class:`.PathPosterior` the step's coordinates are correlated; amplitude and noise are 1 then.
        point: x_0, shape (E..., d), d the coordinates of all states of one element.
        residual: y - g(x_0, o), shape (E..., k).
        amplitude: a, shape (E...).
        noise: s^2, shape (E...).
    """

    def __init__(
        self,
        spectrum: Spectrum | SeenCoordinates | PathPosterior,
        point: Array,
        residual: Array,
        amplitude: Array,
        noise: Array,
    ) -> None:
        self.spectrum, self.point = spectrum, point
        self.residual, self.amplitude, self.noise = residual, amplitude, noise

    def __call__(self, chain: ReverseChain, x_t: Array, t: ArrayLike) -> dist.Normal | CorrelatedStep:
        output = chain.output(x_t, t)
        step = check_normal(chain.reverse(x_t, t, output), "guidance by a model's likelihood")
        point, residual, amplitude, noise = (
            jnp.asarray(part, x_t.dtype) for part in (self.point, self.residual, self.amplitude, self.noise)
        )
        x_0 = chain.denoised(x_t, t, output).reshape(point.shape)
        left = residual - amplitude[..., None] * self.spectrum.image(x_0 - point)
        if isinstance(self.spectrum, PathPosterior):
            return self.spectrum.step(step, t, left)
        shift, share = self.spectrum.at(t, left, amplitude, noise)
        return conditioned_step(chain, step, t, shift.reshape(x_t.shape), share.reshape(x_t.shape))
