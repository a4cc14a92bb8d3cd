r"""Reverse steps multiplied by a factor r: the paper's Section 2.5.

With r(x^0) > 0 (a likelihood, an observation) the wanted distribution is p(x^0) r(x^0). A *tilt* replaces every reverse
step by

    q(x^{t-1} | x^t)  proportional to  p(x^{t-1} | x^t) r_{t-1}(x^{t-1}),

to first order at the step's mean for real states, and for discrete ones by changing one coordinate at a time. The start
pi(x^T) stays as it is, and log psi_t = log r_t(x^t).

The posterior's own reverse step has r_{t-1}(x^{t-1}) = E[r(x^0) | x^{t-1}], which no r_{t-1} below is in general. So
x^0 is *not* a sample of the posterior, however exact each product; it is a proposal, to be weighted
(``TiltedChain.log_weight``) or resampled.

References: Sohl-Dickstein et al. 2015, Section 2.5, Eq. 16-22 and Appendix C.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from .._checks import check_choice
from .._pytree import register_pytree
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from .base import Guided, as_numbers, as_pytree_function, checked_log_r, over_batch, state_changes
from .units import of_states

__all__ = ["PaperTilt"]

Exponent = Literal["constant", "annealed"]


@register_pytree(data=("log_r",), static=("exponent",))
class PaperTilt:
    """The step's mean moved up the slope of log r (approximate: a proposal, or a baseline; not the posterior).

    - Gaussian: N(m + s^2 g, s^2), with g the gradient of log r_{t-1} at the step's mean m.
    - Discrete: the probability of state k times r_{t-1}(.., k, ..), the other coordinates at the step's likeliest
      states; the exact product when r is a product over coordinates.

    with r_{t-1} = r, or r^((T-(t-1))/T), which leaves the start nearly untouched. The Gaussian one is an Euler step,
    unstable where s^2 times the curvature of log r exceeds 2. A bit at which r is 0 for both values is not tilted; one
    at which r is 0 for one value is set to the other at *every* step: such a chain does not reach all that p r does,
    and its weights say nothing. D coordinates of K states cost D (K - 1) + 2 evaluations of log r at each step.

    Args:
        log_r: function of one x, shape (event...), floating point (bits as 0. and 1.), to a number in nats. It must
            have stable identity; data go in as leaves of a ``jax.tree_util.Partial``.
        exponent: ``"constant"`` in t, as in the paper's experiments, or ``"annealed"``.

    Raises:
        TypeError: for a ``log_r`` that cannot be called.
        ValueError: for an unknown exponent; when used, for a ``log_r`` that does not return one real number.

    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> tilt = PaperTilt(lambda x: 0.5 * x.sum(), exponent="annealed")
    >>> tilt(ReverseChain(kernel, standard_normal), jnp.zeros((3, 2)), 1).step.batch_shape
    (3, 2)

    References: Sohl-Dickstein et al. 2015, Table App. 1 and Section 2.5.
    """

    log_r: Callable[[Array], ArrayLike]
    exponent: Exponent

    def __init__(self, log_r: Callable[[Array], ArrayLike], exponent: Exponent = "constant") -> None:
        check_choice("exponent", exponent, Exponent)
        self.log_r = as_pytree_function("log_r(x)", log_r)
        self.exponent = exponent

    def in_states(self, transforms: Any) -> "PaperTilt":
        """The same r, given as a function of x = T(s), as one of the chain's states s; ``prior.transforms`` are T."""
        return PaperTilt(of_states(self.log_r, transforms), self.exponent)

    def __call__(self, chain: ReverseChain, x_t: Array, t: ArrayLike) -> Guided:
        kernel, step = chain.kernel, chain.reverse(x_t, t)
        num_batch_dims = jnp.ndim(x_t) - chain.state_dim
        state = as_numbers(kernel, x_t)
        log_r = over_batch(checked_log_r(self.log_r, chain.state_shape, state.dtype), num_batch_dims)
        log_psi = self._exponent(chain, t, state.dtype) * log_r(state)
        exponent = chain.beside_state(self._exponent(chain, jnp.asarray(t) - 1, state.dtype))
        if kernel.num_states is None:
            slope = over_batch(jax.grad(checked_log_r(self.log_r, chain.state_shape, state.dtype)), num_batch_dims)
            return Guided(kernel.tilt(step, exponent * slope(step.mean)), log_psi)
        point = jnp.argmax(kernel.log_probabilities(step), axis=-1).astype(state.dtype)
        changes = state_changes(log_r, point, kernel.num_states, num_batch_dims)
        return Guided(kernel.multiplied(step, exponent[..., None] * changes), log_psi)

    def _exponent(self, chain: ReverseChain, t: ArrayLike, dtype: Any) -> Array:
        """Of r at level t."""
        if self.exponent == "constant":
            return jnp.ones((), dtype)
        return (chain.num_steps - jnp.asarray(t)).astype(dtype) / chain.num_steps
