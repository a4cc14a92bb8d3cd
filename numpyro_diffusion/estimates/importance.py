r"""Weights of forward paths, and the importance-weighted estimate of log p(x^0) that they make.

    p(x^0) = E_q[w],     w = p(x^{0:T}) / q(x^{1:T} | x^0)                                              (Eq. 9)

Each factor of w compares two distributions of the same x^{t-1} that nearly agree, p(x^{t-1} | x^t) and the bridge, so
that nothing large is subtracted and float32 is enough.

References: Sohl-Dickstein et al. 2015, Eq. 9; Burda et al. 2016.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from .._checks import check_integer_at_least
from .._typing import Array
from ..chains import ReverseChain
from .base import repeat

__all__ = ["ImportanceWeighted", "log_path_ratio", "log_trajectory_weight"]


@dataclasses.dataclass(frozen=True)
class ImportanceWeighted:
    """log of the average weight of N forward trajectories: the paper's Eq. 9 inside the log.

    A lower bound in expectation for every N, above the bound K, and tight as N grows. N * T network calls.

    Args:
        num_trajectories: N.

    References: Sohl-Dickstein et al. 2015, Eq. 9; Burda et al. 2016.
    """

    num_trajectories: int = 16

    def __post_init__(self) -> None:
        check_integer_at_least("num_trajectories", self.num_trajectories, 1, "Take 1 or more trajectories.")

    def __call__(self, rng_key: jax.Array, chain: ReverseChain, x_0: Array) -> Array:
        log_weights = log_trajectory_weight(rng_key, chain, repeat(x_0, self.num_trajectories))
        if self.num_trajectories == 1:
            return log_weights
        return jax.nn.logsumexp(log_weights, axis=0) - math.log(self.num_trajectories)


def log_trajectory_weight(rng_key: jax.Array, chain: ReverseChain, x_0: Array) -> Array:
    """The log weight of one forward path, drawn from its end back: log p(x^{0:T}) - log q(x^{1:T} | x^0).

    Returns:
        Shape (batch...), nats.
    """
    kernel, top = chain.kernel, chain.num_steps
    marginal, stationary = kernel.marginal(x_0, top), kernel.stationary(jnp.shape(x_0))
    x_top = marginal.sample(jax.random.fold_in(rng_key, top))
    log_weight = stationary.log_prob(x_top) - marginal.log_prob(x_top)

    def step(carry: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], None]:
        x_t, log_weight = carry
        reverse = chain.reverse(x_t, t)
        bridge = kernel.bridge(x_t, x_0, t)
        x_previous = bridge.sample(jax.random.fold_in(rng_key, t - 1))
        return (x_previous, log_weight + reverse.log_prob(x_previous) - bridge.log_prob(x_previous)), None

    (x_1, log_weight), _ = jax.lax.scan(step, (x_top, log_weight), jnp.arange(2, top + 1), reverse=True)
    return chain.sum_state(log_weight + chain.reverse(x_1, 1).log_prob(x_0))


def log_path_ratio(chain: ReverseChain, path: Array) -> Array:
    """Log p(x^{0:T}) - log q(x^{1:T} | x^0) of given paths, in one pass through the network.

    Args:
        chain: down to x^0.
        path: shape (T + 1, batch..., event...), time first.

    Returns:
        Shape (batch...), nats.
    """
    kernel, before, after = chain.kernel, path[:-1], path[1:]
    t = jnp.arange(1, chain.num_steps + 1).reshape((-1,) + (1,) * (path.ndim - 1 - chain.state_dim))
    steps = chain.reverse(after, t).log_prob(before).sum(0)
    # At t = 1 the bridge is the point x^0 itself, without a density or a gradient of one: p's stands alone.
    bridge = kernel.bridge(after[1:], path[:1], chain.beside_state(t[1:])).log_prob(before[1:]).sum(0)
    x_0, x_top = path[0], path[-1]
    ends = kernel.stationary(x_top.shape).log_prob(x_top) - kernel.marginal(x_0, chain.num_steps).log_prob(x_top)
    return chain.sum_state(steps - bridge + ends)
