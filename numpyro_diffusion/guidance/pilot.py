r"""Guidance by a mean and a covariance known beforehand: above the noise of the data it leaves the network out.

At levels noisier than the data, y has decided what x^t has not: x0hat(x^t) is far from E[x^0 | x^t, y], and guidance
has much to add to it, which changes fast with x^t. With x^0 given y taken as N(m, S) once, the step there is that of
x^0 given x^t under N(m, S), in closed form. With S = Q diag(l) Q^T, x^t = a x^0 + sqrt(n) eps,

    E = m + Q diag(a l / (a^2 l + n)) Q^T (x^t - a m)
    V = diag(Q diag(l n / (a^2 l + n)) Q^T)
    mean      m_t + c_t (E - x0hat),        variance    lower_t + c_t^2 V

with m_t the step's own mean, c_t and lower_t the bridge's. Below that level another guidance takes over.

For y = x^0 + noise on all coordinates m and S come from one network call (:func:`pilot_guidance`): y is an x^t at its
own level. There

    S_0 = D^{1/2} corr(C_t) D^{1/2},     D = Var[x^0 | x^t] of the network,  C_t the covariance of its errors,

and what is left of y's precision, 1/s^2 - a^2 / n, is added exactly. *Approximate*: biased by itself, a chart of noises
(:class:`~.DiffusionReparam`) and a proposal.

Assumed: a Gaussian kernel.
"""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .._checks import check_finite, expected
from .._pytree import register_pytree
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from .base import Guidance, as_pytree_function, check_normal, check_real, guide_step
from .covariances import ErrorCovariance
from .network_errors import CovarianceGuidance

__all__ = ["PilotGuidance", "pilot_guidance"]


@register_pytree(data=("mean", "directions", "powers", "noise_level", "below"), static=())
class PilotGuidance:
    """Approximate: guidance as if x^0 given y were N(mean, covariance), at levels noisier than ``noise_level``.

    Args:
        mean: m, in the shape of one state.
        covariance: S, shape (d, d), positive definite.
        noise_level: the noise of the data, as a standard deviation in units of x^0, > 0. Levels t with
            sqrt(n_t) / a_t above it are guided by m and S.
        below: guidance of the other levels.

    Raises:
        ValueError: for shapes that do not agree, a covariance that is not one, values that are not finite, or a
            noise level that is not positive.
        TypeError: when used with a kernel that is not Gaussian.

    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
    >>> from numpyro_diffusion.guidance import MomentMatching
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper", parameterization="x0")
    >>> chain = ReverseChain(kernel, Transition(lambda params, x_t, t, context: x_t, None, event_shape=(2,)))
    >>> y = jnp.ones(2)
    >>> guided = PilotGuidance(y / 2, jnp.eye(2) / 2, 1.0, MomentMatching(jnp.eye(2), y, 1.0))
    >>> guided(chain, jnp.zeros((3, 2)), 20).batch_shape
    (3, 2)
    """

    def __init__(self, mean: ArrayLike, covariance: ArrayLike, noise_level: float, below: Guidance) -> None:
        mean, covariance = jnp.asarray(mean, float), np.asarray(covariance, float)
        check_finite("mean", mean)
        check_finite("covariance", covariance)
        if covariance.shape != (mean.size, mean.size):
            got = f"shapes {mean.shape} and {covariance.shape}"
            raise ValueError(expected("mean (event...) and covariance (d, d)", got, "d is the number of coordinates."))
        if not noise_level > 0:
            raise ValueError(expected("noise_level > 0", noise_level, "It is the standard deviation of the noise."))
        powers, directions = np.linalg.eigh(covariance)
        if not (powers > 0).all() or not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-5 * powers.max()):
            got = f"smallest eigenvalue {powers.min():.3g}"
            raise ValueError(expected("a symmetric positive definite covariance", got, "Add a small diagonal."))
        self.mean, self.directions, self.powers = mean, jnp.asarray(directions, float), jnp.asarray(powers, float)
        self.noise_level = noise_level
        self.below = as_pytree_function("below(chain, x_t, t)", below)

    def __call__(self, chain: ReverseChain, x_t: Array, t: ArrayLike) -> dist.Distribution:
        kernel = chain.kernel
        check_real(kernel, "PilotGuidance", "Use PaperTilt.")
        output = chain.output(x_t, t)
        step = check_normal(chain.reverse(x_t, t, output), "PilotGuidance")
        low = check_normal(guide_step(self.below, chain, x_t, t).step, "PilotGuidance")
        directions, powers = (jnp.asarray(values, x_t.dtype) for values in (self.directions, self.powers))
        signal, noise = (values[..., None] for values in kernel.signal_and_noise(jnp.asarray(t), x_t))
        variances = kernel.denoised_variance(jnp.asarray(t)[..., None], powers)
        mean = jnp.asarray(self.mean, x_t.dtype).reshape(-1)
        rest = x_t.reshape(*x_t.shape[: x_t.ndim - chain.state_dim], -1) - signal * mean
        guided = mean + (signal / noise * variances * (rest @ directions)) @ directions.T
        variance = (variances @ (directions**2).T).reshape(*variances.shape[:-1], *chain.state_shape)
        t = chain.beside_state(t)
        gain, lower = kernel.bridge_terms(t, x_t)
        loc = step.loc + gain * (guided.reshape(x_t.shape) - chain.denoised(x_t, t, output))
        scale = jnp.broadcast_to(jnp.sqrt(lower + gain**2 * variance), loc.shape)
        signal, noise = kernel.signal_and_noise(t, x_t)
        is_noisy = noise > (self.noise_level * signal) ** 2
        return dist.Normal(
            jnp.where(is_noisy, loc, low.loc), jnp.where(is_noisy, scale, low.scale), validate_args=False
        )


def pilot_guidance(
    chain: ReverseChain, value: ArrayLike, noise_scale: float, *, errors: ErrorCovariance
) -> PilotGuidance:
    """The guidance by y = x^0 + noise on all coordinates, from one network call; below y's level by ``errors``.

    Args:
        chain: ``prior.chain``, of one x, without a batch.
        value: y, in the shape of one state.
        noise_scale: s, the noise's standard deviation, > 0.
        errors: C_t, from :func:`~numpyro_diffusion.guidance.error_covariance`.

    Raises:
        ValueError: for a value of another shape, values that are not finite, or a noise scale that is not positive.
        TypeError: for a kernel that is not Gaussian.
    """
    kernel, size = chain.kernel, errors.diagonal.shape[-1]
    check_real(kernel, "pilot_guidance", "Use PaperTilt.")
    if jnp.shape(value) != chain.state_shape or chain.batch_shape:
        got = f"shape {jnp.shape(value)} and batch_shape {chain.batch_shape}"
        raise ValueError(expected(f"a value of shape {chain.state_shape} and one chain", got, "Take one x at a time."))
    value = jnp.asarray(value, float)
    below = CovarianceGuidance(
        jnp.eye(size).reshape(size, *chain.state_shape), value.reshape(-1), noise_scale, errors=errors
    )
    signal, noise = kernel.signal_and_noise(jnp.arange(1, chain.num_steps + 1), value)
    level = np.asarray(jnp.sqrt(noise)) / np.maximum(np.asarray(signal), np.finfo(np.float32).tiny)
    t = 1 + min(int(np.searchsorted(level, noise_scale)), chain.num_steps - 1)
    x_t = signal[t - 1] * value
    output = chain.output(x_t, t)
    step, (gain, lower) = chain.reverse(x_t, t, output), kernel.bridge_terms(t, x_t)
    covariance = errors.at_levels([t]).matrices()[0]
    known = jnp.diagonal(covariance)
    variance = jnp.maximum((step.scale**2 - lower) / gain**2, 1e-2 * known.reshape(chain.state_shape)).reshape(-1)
    stretch = jnp.sqrt(variance / known)
    powers, directions = jnp.linalg.eigh(stretch[:, None] * covariance * stretch)
    left = max(1 / noise_scale**2 - 1 / float(level[t - 1]) ** 2, 0.0)
    powers = jnp.maximum(powers, 1e-6 * powers[-1])
    powers = powers / (1 + left * powers)
    mean = chain.denoised(x_t, t, output).reshape(-1)
    mean = mean + left * ((powers * ((value.reshape(-1) - mean) @ directions)) @ directions.T)
    return PilotGuidance(
        mean.reshape(chain.state_shape), (directions * powers) @ directions.T, float(noise_scale), below
    )
