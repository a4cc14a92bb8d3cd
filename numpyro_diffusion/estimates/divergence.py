r"""KL(q(x^{1:T} | x^0) || p(x^{1:T})), registered with NumPyro for TraceMeanField_ELBO.

    KL = KL(q(x^T | x^0) || pi) + sum_{t=2..T} E_q[ KL( q(x^{t-1} | x^t, x^0) || p(x^{t-1} | x^t) ) ]

Each inner KL is in closed form; the expectation is over x^t drawn from its closed-form marginal, one draw a
step, so the result is an unbiased estimate with less variance than log q - log p of one trajectory. Its key is
the forward chain's.

References: Sohl-Dickstein et al. 2015, Eq. 13-14 and Appendix B.
"""

import jax.numpy as jnp
from numpyro.distributions.kl import kl_divergence

from .._typing import Array
from ..chains.forward import ForwardChain
from ..chains.keys import require_key
from ..chains.reverse import ReverseChain
from .bounds import prior_term, sum_of_step_terms

__all__: list[str] = []


@kl_divergence.register(ForwardChain, ReverseChain)
def _kl_forward_reverse(forward: ForwardChain, reverse: ReverseChain) -> Array:
    if reverse.stop != 1 or type(forward.kernel) is not type(reverse.kernel):
        # NumPyro falls back to log q - log p, and reports shapes that do not match.
        raise NotImplementedError
    batch_shape = jnp.broadcast_shapes(forward.batch_shape, reverse.batch_shape)
    x_0 = jnp.broadcast_to(jnp.asarray(forward.x_0), batch_shape + forward.event_shape[1:])
    key = require_key(forward.rng_key, "kl_divergence(ForwardChain, ReverseChain)")
    context = None if reverse.context is None else jnp.asarray(reverse.context)
    steps = sum_of_step_terms(reverse.kernel, reverse.transition, x_0, key, context, first=2)
    return -(prior_term(reverse.kernel, reverse.transition, x_0) + steps)
