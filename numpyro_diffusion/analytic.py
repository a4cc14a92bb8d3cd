r"""Transitions that are known exactly: the denoiser of a Gaussian mixture, in place of a network.

For data x^0 ~ sum_k w_k N(mu_k, s^2 I) and x^t = a x^0 + sqrt(v) eps, with a = sqrt(abar_t), v = v_t:

    w_k(x^t)          proportional to w_k N(x^t; a mu_k, (a^2 s^2 + v) I)
    E[x^0 | x^t]      sum_k w_k(x^t) m_k,               m_k = mu_k + g (x^t - a mu_k),  g = a s^2 / (a^2 s^2 + v)
    Var[x^0_i | x^t]  s^2 v / (a^2 s^2 + v) + (1 - g a)^2 Var_k[mu_ki]      under the weights w_k(x^t)

With them a chain of any length has exact first and second moments at every step, so what is wrong in a
posterior is the engine and not a network. They also serve as priors: a mixture is a distribution worth having.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ._checks import expected
from ._typing import Array, ArrayLike
from .kernels import GaussianKernel
from .transition import Transition

__all__ = ["gaussian_mixture"]


@dataclasses.dataclass(frozen=True)
class _MixtureDenoiser:
    """(E[x^0 | x^t], Var[x^0 | x^t]); equal to every other of its kind, so nothing is compiled twice."""

    def __call__(self, params: Any, x_t: Array, t: Array, context: Array | None) -> tuple[Array, Array]:
        means, log_weights, scale = (jnp.asarray(params[name], x_t.dtype) for name in ("means", "log_weights", "scale"))
        power = jnp.asarray(params["alpha_bar"], x_t.dtype)[t][..., None]
        noise = jnp.asarray(params["noise_variance"], x_t.dtype)[t][..., None]
        signal = jnp.sqrt(power)
        total = power * scale**2 + noise
        # log N up to what all components share, as two products of matrices.
        logits = log_weights + (signal * (x_t @ means.T) - 0.5 * power * (means**2).sum(-1)) / total
        weights = jax.nn.softmax(logits, axis=-1)
        mean = weights @ means
        gain = signal * scale**2 / total
        shrink = noise / total  # 1 - gain * signal, without cancellation
        spread = jnp.maximum(weights @ means**2 - mean**2, 0)
        return shrink * mean + gain * x_t, scale**2 * shrink + shrink**2 * spread


def gaussian_mixture(kernel: GaussianKernel, means: ArrayLike, scale: ArrayLike, weights: ArrayLike) -> Transition:
    """The exact denoiser of a mixture of isotropic Gaussians, as a transition.

    Args:
        kernel: with ``parameterization="x0"`` and ``variance="denoiser"``; its schedule must drown the means.
        means: shape (components, dimension).
        scale: standard deviation of every component, > 0.
        weights: shape (components,), > 0; normalised here.

    Raises:
        ValueError: for another parameterisation or variance, or shapes that do not agree.

    >>> from numpyro_diffusion import Diffusion, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(50), parameterization="x0", variance="denoiser")
    >>> transition = gaussian_mixture(kernel, means=jnp.array([[-2.0], [2.0]]), scale=0.5, weights=jnp.ones(2))
    >>> mean, variance = transition(jnp.array([0.0]), 25)  # half way, in the middle
    >>> round(float(variance[0]), 2)
    2.55
    """
    if kernel.parameterization != "x0" or kernel.variance != "denoiser":
        raise ValueError(
            expected(
                "a kernel with parameterization='x0' and variance='denoiser'",
                f"{kernel.parameterization!r} and {kernel.variance!r}",
                "The transition returns the mean and the variance of x^0 given x^t.",
            )
        )
    shape = jnp.shape(means)
    if len(shape) != 2 or jnp.shape(weights) != shape[:1] or jnp.shape(scale) != ():
        raise ValueError(
            expected(
                "means (components, dimension), weights (components,), scale ()",
                f"shapes {shape}, {jnp.shape(weights)}, {jnp.shape(scale)}",
                "Every component has one mean and one weight; all share the scale.",
            )
        )
    if not (math.isfinite(float(jnp.log(scale))) and bool(jnp.all(jnp.isfinite(jnp.log(jnp.asarray(weights)))))):
        raise ValueError(expected("scale > 0 and weights > 0", (scale, weights), "Drop components of weight 0."))
    params = {
        "means": jnp.asarray(means, float),
        "scale": jnp.asarray(scale, float),
        "log_weights": jnp.log(jnp.asarray(weights, float)),
        "alpha_bar": jnp.asarray(kernel.schedule.alpha_bar, float),
        "noise_variance": jnp.asarray(kernel.schedule.noise_variance, float),
    }
    return Transition(_MixtureDenoiser(), params, event_shape=shape[1:])
