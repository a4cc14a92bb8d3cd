r"""Lower bounds on log p(x^0).

    log p(x^0) >= E_q[ -KL(q(x^T | x^0) || pi) + log p(x^0 | x^1)
                       - sum_{t=2..T} KL(q(x^{t-1} | x^t, x^0) || p(x^{t-1} | x^t)) ]           (Eq. 13, exact terms)

holds for any data and any kernel; nothing is assumed of the data's mean or variance. :func:`paper_bound` is the
paper's form (Eq. 14), which does assume it.

References: Sohl-Dickstein et al. 2015, Section 2.3 and Appendix B; Kingma et al. 2021 (random steps).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from .._checks import check_integer_at_least
from .._typing import Array
from ..chains import ReverseChain
from .base import repeat
from .terms import paper_end_terms, prior_term, step_term, sum_of_step_terms

__all__ = ["AllSteps", "RandomStep", "paper_bound"]


@dataclasses.dataclass(frozen=True)
class RandomStep:
    """The bound with one random step for each example: unbiased, one network call, for training.

    The steps are stratified over the batch and the draws (one uniform offset, evenly spaced points), so a batch of T
    examples visits every step once.

    Args:
        num_draws: random steps for each example.

    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> prior = Diffusion(kernel, standard_normal, estimator=RandomStep(), rng_key=jax.random.key(0))
    >>> prior.log_prob(jnp.ones((5, 2))).shape
    (5,)

    References: Kingma et al. 2021 (the low-discrepancy sampler of times).
    """

    num_draws: int = 1

    def __post_init__(self) -> None:
        check_integer_at_least("num_draws", self.num_draws, 1, "Take 1 or more random steps for each example.")

    def __call__(self, rng_key: jax.Array, chain: ReverseChain, x_0: Array) -> Array:
        key_step, key_noise = jax.random.split(rng_key)
        x_0_drawn = repeat(x_0, self.num_draws)
        shape = x_0_drawn.shape[: x_0_drawn.ndim - chain.state_dim]
        # In this order the draws of one example are spread over all steps.
        points = jnp.arange(math.prod(shape)).reshape(shape) / math.prod(shape)
        position = (points + jax.random.uniform(key_step)) % 1.0
        t = 1 + jnp.minimum((position * chain.num_steps).astype(int), chain.num_steps - 1)
        steps = step_term(key_noise, chain, x_0_drawn, t)
        if self.num_draws > 1:
            steps = steps.mean(0)
        return prior_term(chain, x_0) + chain.num_steps * steps


@dataclasses.dataclass(frozen=True)
class AllSteps:
    """The bound K with every step: T network calls, the only noise is that of x^t. For evaluation.

    Args:
        num_draws: draws of x^t at each step.

    References: Sohl-Dickstein et al. 2015, Eq. 13.
    """

    num_draws: int = 1

    def __post_init__(self) -> None:
        check_integer_at_least("num_draws", self.num_draws, 1, "Take 1 or more draws of x^t at each step.")

    def __call__(self, rng_key: jax.Array, chain: ReverseChain, x_0: Array) -> Array:
        steps = sum_of_step_terms(rng_key, chain, repeat(x_0, self.num_draws))
        return prior_term(chain, x_0) + (steps.mean(0) if self.num_draws > 1 else steps)


def paper_bound(rng_key: jax.Array, chain: ReverseChain, x_0: Array) -> Array:
    """The bound K in the paper's form, for data normalised as the paper's.

    K = - sum_{t=2..T} E_q[KL(bridge || reverse)] + H_q(X^T | X^0) - H_q(X^1 | X^0) - H_p(X^T)

    The last reverse step is *set* to the forward kernel with b_1 (the edge effect of Appendix B.2), so the
    network is not asked at t = 1, and K says nothing without its b_1. The cross entropies were dropped because
    they cancel for data of zero mean and unit variance (Gaussian), or with mean equal to the rate (binomial).
    Elsewhere it is no bound: use :class:`AllSteps`.

    Args:
        rng_key: of the draws of x^t.
        chain: the reverse chain, from T to 0.
        x_0: data, shape (batch..., event...).

    Returns:
        Shape (batch...), nats, with one draw of x^t a step.

    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> paper_bound(jax.random.key(0), ReverseChain(kernel, standard_normal), jnp.ones((5, 2))).shape
    (5,)

    References: Sohl-Dickstein et al. 2015, Eq. 14 and Appendix B.2.
    """
    prior, edge = paper_end_terms(chain, x_0)
    return sum_of_step_terms(rng_key, chain, x_0, first=2) + prior + edge
