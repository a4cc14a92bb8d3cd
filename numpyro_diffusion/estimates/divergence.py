r"""KL(q(x^{1:T} | x^0) || p(x^{1:T})), registered with NumPyro for TraceMeanField_ELBO.

    KL = KL(q(x^T | x^0) || pi) + sum_{t=2..T} E_q[ KL( q(x^{t-1} | x^t, x^0) || p(x^{t-1} | x^t) ) ]

q is the forward chain's own, whatever schedule the reverse chain was made for. Each inner KL is in closed form. The
expectation is over x^t drawn from its closed-form marginal, one draw a step: the result is an unbiased estimate with
less variance than log q - log p of one path. Its key is the forward chain's.

References: Sohl-Dickstein et al. 2015, Eq. 13-14 and Appendix B.
"""

import jax.numpy as jnp
from numpyro.distributions.kl import kl_divergence

from .._typing import Array
from ..chains.forward import ForwardChain
from ..chains.keys import require_key
from ..chains.reverse import ReverseChain
from .terms import prior_term, sum_of_step_terms

__all__: list[str] = []


@kl_divergence.register(ForwardChain, ReverseChain)
def _kl_forward_reverse(forward: ForwardChain, reverse: ReverseChain) -> Array:
    kernel = forward.kernel
    shapes_differ = kernel.num_steps != reverse.num_steps or forward.event_shape[1:] != reverse.state_shape
    if reverse.stop != 1 or type(kernel) is not type(reverse.kernel) or shapes_differ:
        # NumPyro falls back to log q - log p, and reports shapes that do not match.
        raise NotImplementedError("chains of kernels of two kinds, of other shapes, or cut off, have no closed form")
    batch_shape = jnp.broadcast_shapes(forward.batch_shape, reverse.batch_shape)
    x_0 = jnp.broadcast_to(jnp.asarray(forward.x_0), batch_shape + forward.event_shape[1:])
    rng_key = require_key(forward.rng_key, "kl_divergence(ForwardChain, ReverseChain)")
    steps = sum_of_step_terms(rng_key, reverse, x_0, first=2, forward=kernel)
    return -(prior_term(reverse, x_0, forward=kernel) + steps)
