r"""The terms that bounds and weights are sums of, each from one visit of the network to one state.

    prior term        -KL(q(x^T | x^0) || pi)
    step term 1       log p(x^0 | x^1)
    step term t       -KL(q(x^{t-1} | x^t, x^0) || p(x^{t-1} | x^t)),   t = 2..T                       (Eq. 13)

A path may come from another forward chain than the one that the network was trained for: then q is that of ``forward``.
x^t is drawn from its closed-form marginal with noise that does not depend on the parameters ("frozen noise"), so that
gradients reach a learned schedule. All results have shape (batch...) and are in nats.

References: Sohl-Dickstein et al. 2015, Section 2.3 and Appendix B.
"""

import jax
import jax.numpy as jnp

from .._typing import Array
from ..chains import ReverseChain
from ..kernels import Kernel

__all__ = ["draw_state", "paper_end_terms", "prior_term", "score_step", "step_term", "sum_of_step_terms"]


def prior_term(chain: ReverseChain, x_0: Array, *, forward: Kernel | None = None) -> Array:
    """-KL(q(x^T | x^0) || pi): what the chain's far end costs."""
    forward = forward or chain.kernel
    stationary = chain.kernel.stationary(jnp.shape(x_0))
    return -chain.sum_state(forward.kl(forward.marginal(x_0, chain.num_steps), stationary))


def paper_end_terms(chain: ReverseChain, x_0: Array) -> tuple[Array, Array]:
    """What stands in Eq. 14 for the prior term and for step 1: H_q(X^T | X^0) - H_p(X^T) and -H_q(X^1 | X^0)."""
    kernel = chain.kernel
    prior = kernel.marginal(x_0, chain.num_steps).entropy() - kernel.stationary(jnp.shape(x_0)).entropy()
    return chain.sum_state(prior), -chain.sum_state(kernel.marginal(x_0, 1).entropy())


def draw_state(
    rng_key: jax.Array, chain: ReverseChain, x_0: Array, t: Array, *, forward: Kernel | None = None
) -> Array:
    """A sample of q(x^t | x^0), in the shape of x_0; t broadcasts with the batch shape."""
    return (forward or chain.kernel).marginal(x_0, chain.beside_state(t)).sample(rng_key)


def score_step(chain: ReverseChain, x_0: Array, x_t: Array, t: Array, *, forward: Kernel | None = None) -> Array:
    """What step t adds to the bound at x^t."""
    forward = forward or chain.kernel
    return chain.sum_state(forward.bound_term(chain.reverse(x_t, t), x_t, x_0, chain.beside_state(t)))


def step_term(rng_key: jax.Array, chain: ReverseChain, x_0: Array, t: Array, *, forward: Kernel | None = None) -> Array:
    """Draw x^t given x^0 and score the reverse step there; t broadcasts with the batch shape."""
    return score_step(chain, x_0, draw_state(rng_key, chain, x_0, t, forward=forward), t, forward=forward)


def sum_of_step_terms(
    rng_key: jax.Array, chain: ReverseChain, x_0: Array, *, first: int = 1, forward: Kernel | None = None
) -> Array:
    """The terms of steps ``first``..T summed, one sample of x^t each, in memory that does not grow with T."""

    def step(total: Array, t: Array) -> tuple[Array, None]:
        return total + step_term(jax.random.fold_in(rng_key, t), chain, x_0, t, forward=forward), None

    start = jnp.zeros_like(prior_term(chain, x_0, forward=forward))
    total, _ = jax.lax.scan(step, start, jnp.arange(first, chain.num_steps + 1))
    return total
