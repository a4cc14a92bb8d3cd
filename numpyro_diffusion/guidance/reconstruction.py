r"""Guidance by the likelihood of the network's reconstruction.

Let x0hat(x^t) be the network's estimate of E[x^0 | x^t]. For r(x^0) = p(y | x^0) the posterior's reverse step has the
mean

    E[x^{t-1} | x^t, y] = c_t E[x^0 | x^t, y] + d_t x^t,    E[x^0 | x^t, y] = x0hat + (n_t / a_t) g_t,
    g_t = the gradient of log p(y | x^t) with respect to x^t  (Tweedie's formula, exact)

and p(y | x^t), an integral over x^0 given x^t, is unknown. Here r(x0hat) stands for it, for any r; for Normal
observations :mod:`.moment_matching` does better. The step keeps p's variance, which the observation should shrink.
It is *approximate*: biased, however many steps. It is a proposal for weights and resampling, and a baseline.

Assumed: real states and a differentiable network. Cost: one network call and its vector-Jacobian product.

References: Chung et al. 2023 (DPS); Ho et al. 2022 (reconstruction guidance).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._pytree import register_pytree
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from .base import Guided, as_pytree_function, check_real, checked_log_r, over_batch
from .units import of_states

__all__ = ["ReconstructionGuidance", "reconstruct"]


@register_pytree(data=("log_r", "strength"), static=())
class ReconstructionGuidance:
    """Approximate: the step's mean moved by strength s_t^2 (the gradient of log r(x0hat(x^t)) by x^t). Biased.

    The guidance of DPS with the reverse variance s_t^2 as its step size: it takes the reconstruction for the truth and
    overstates what y says while x^t is noisy. It is not the posterior even for a Gaussian prior. As an Euler step it
    is unstable where s_t^2 times the curvature of log r(x0hat(x^t)) exceeds 2.

    Args:
        log_r: function of one x^0, shape (event...), to a number in nats. It must have stable identity; data go in as
            leaves of a ``jax.tree_util.Partial``.
        strength: factor of the slope; 0 is the untilted step.

    Raises:
        TypeError: for a ``log_r`` that cannot be called; when used with a kernel that is not Gaussian.
        ValueError: when used, for a ``log_r`` that does not return one real number.

    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> guided = ReconstructionGuidance(lambda x: -0.5 * ((x - 1) ** 2).sum())
    >>> guided(ReverseChain(kernel, standard_normal), jnp.zeros((3, 2)), 20).step.batch_shape
    (3, 2)

    References: Chung et al. 2023, Algorithm 1; Ho et al. 2022, Eq. 7.
    """

    log_r: Callable[[Array], ArrayLike]
    strength: ArrayLike

    def __init__(self, log_r: Callable[[Array], ArrayLike], strength: ArrayLike = 1.0) -> None:
        self.log_r = as_pytree_function("log_r(x)", log_r)
        self.strength = strength

    def in_states(self, transforms: Any) -> "ReconstructionGuidance":
        """The same r, given as a function of x = T(s), as one of the chain's states s; ``prior.transforms`` are T."""
        return ReconstructionGuidance(of_states(self.log_r, transforms), self.strength)

    def __call__(self, chain: ReverseChain, x_t: Array, t: ArrayLike) -> Guided:
        x_0, pull, step = reconstruct("ReconstructionGuidance", chain, x_t, t)
        log_r = checked_log_r(self.log_r, chain.state_shape, x_0.dtype)
        value, slope = over_batch(jax.value_and_grad(log_r), jnp.ndim(x_t) - chain.state_dim)(x_0)
        (slope,) = pull(slope)
        strength = jnp.asarray(self.strength, slope.dtype)
        return Guided(chain.kernel.tilt(step, strength * slope), strength * value)


def reconstruct(
    name: str, chain: ReverseChain, x_t: Array, t: ArrayLike
) -> tuple[Array, Callable[[Array], tuple[Array]], Any]:
    """From one network call: x0hat, the map from a cotangent of it to one of x^t, and the reverse step.

    Raises:
        TypeError: for discrete states, by the guidance's name.
    """
    check_real(chain.kernel, name, "For bits use PaperTilt, or a Gibbs or particle engine.")

    def estimate(x_t: Array) -> tuple[Array, Any]:
        output = chain.output(x_t, t)
        return chain.denoised(x_t, t, output), chain.reverse(x_t, t, output)

    return jax.vjp(estimate, x_t, has_aux=True)
