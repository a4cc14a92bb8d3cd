r"""Estimates of log p(x^0): the paper's bound and its importance-weighted refinement.

    log p(x^0) >= E_q[ -KL(q(x^T | x^0) || pi) + log p(x^0 | x^1)
                       - sum_{t=2..T} KL(q(x^{t-1} | x^t, x^0) || p(x^{t-1} | x^t)) ]           (Eq. 13, exact terms)

holds for any data and any kernel; nothing is assumed of the data's mean or variance. :func:`paper_bound` is the
paper's form (Eq. 14), which does assume it. x^t is drawn by its closed-form marginal with noise that does not
depend on the parameters ("frozen noise"), so gradients reach a learned schedule.

An estimator is a hashable object called with ``(kernel, transition, x_0, key, context)``: x_0 has shape
(batch..., event...), the result has shape (batch...), in nats. Each call with the same key gives the same
number.

References: Sohl-Dickstein et al. 2015, Section 2.3 and Appendix B; Burda et al. 2016 (importance weighting).
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from .._checks import check_integer_at_least
from .._numerics import expand_right
from .._typing import Array, Shape
from ..kernels import Kernel
from ..transition import Transition, reverse_step

__all__ = [
    "AllSteps",
    "Estimator",
    "ImportanceWeighted",
    "RandomStep",
    "draw_state",
    "log_path_ratio",
    "log_trajectory_weight",
    "paper_bound",
    "paper_end_terms",
    "prior_term",
    "score_step",
    "sum_of_step_terms",
]


@runtime_checkable
class Estimator(Protocol):
    """A named estimate of log p(x^0)."""

    def __call__(
        self, kernel: Kernel, transition: Transition, x_0: Array, key: jax.Array, context: Array | None
    ) -> Array: ...


@dataclasses.dataclass(frozen=True)
class RandomStep:
    """The bound with one random step for each example: unbiased, one network call, for training.

    The steps are stratified over the batch and the draws (one uniform offset, evenly spaced points), so a batch of T
    examples visits every step once.

    Args:
        num_draws: random steps for each example.

    >>> from numpyro_diffusion import Diffusion, GaussianKernel, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> law = Diffusion(kernel, standard_normal, estimator=RandomStep(), rng_key=jax.random.key(0))
    >>> law.log_prob(jnp.ones((5, 2))).shape
    (5,)

    References: Kingma et al. 2021 (the low-discrepancy sampler of times).
    """

    num_draws: int = 1

    def __post_init__(self) -> None:
        check_integer_at_least("num_draws", self.num_draws, 1, "Take 1 or more random steps for each example.")

    def __call__(
        self, kernel: Kernel, transition: Transition, x_0: Array, key: jax.Array, context: Array | None
    ) -> Array:
        key_step, key_noise = jax.random.split(key)
        x_0_drawn = _repeat(transition, x_0, self.num_draws)
        shape = _batch_shape(transition, x_0_drawn)
        # In this order the draws of one example are spread over all steps.
        points = jnp.arange(math.prod(shape)).reshape(shape) / math.prod(shape)
        position = (points + jax.random.uniform(key_step)) % 1.0
        t = 1 + jnp.minimum((position * kernel.num_steps).astype(int), kernel.num_steps - 1)
        steps = step_term(kernel, transition, x_0_drawn, t, key_noise, context)
        if self.num_draws > 1:
            steps = steps.mean(0)
        return prior_term(kernel, transition, x_0) + kernel.num_steps * steps


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

    def __call__(
        self, kernel: Kernel, transition: Transition, x_0: Array, key: jax.Array, context: Array | None
    ) -> Array:
        steps = sum_of_step_terms(kernel, transition, _repeat(transition, x_0, self.num_draws), key, context)
        return prior_term(kernel, transition, x_0) + (steps.mean(0) if self.num_draws > 1 else steps)


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

    def __call__(
        self, kernel: Kernel, transition: Transition, x_0: Array, key: jax.Array, context: Array | None
    ) -> Array:
        x_0_drawn = _repeat(transition, x_0, self.num_trajectories)
        log_weights = log_trajectory_weight(kernel, transition, x_0_drawn, key, context)
        if self.num_trajectories == 1:
            return log_weights
        return jax.nn.logsumexp(log_weights, axis=0) - math.log(self.num_trajectories)


def prior_term(kernel: Kernel, transition: Transition, x_0: Array) -> Array:
    """-KL(q(x^T | x^0) || pi), shape (batch...): what the chain's far end costs, in nats."""
    divergence = kernel.kl(kernel.marginal(x_0, kernel.num_steps), kernel.stationary(jnp.shape(x_0)))
    return -_sum_event(transition, divergence)


def sum_of_step_terms(
    kernel: Kernel, transition: Transition, x_0: Array, key: jax.Array, context: Array | None, *, first: int = 1
) -> Array:
    """The bound's terms of steps ``first``..T summed, one draw of x^t each, in memory that does not grow with T.

    Returns:
        Shape (batch...), nats.
    """

    def step(total: Array, t: Array) -> tuple[Array, None]:
        return total + step_term(kernel, transition, x_0, t, jax.random.fold_in(key, t), context), None

    start = jnp.zeros_like(prior_term(kernel, transition, x_0))
    total, _ = jax.lax.scan(step, start, jnp.arange(first, kernel.num_steps + 1))
    return total


def paper_bound(
    kernel: Kernel, transition: Transition, x_0: Array, key: jax.Array, context: Array | None = None
) -> Array:
    """The bound K in the paper's form, for data normalised as the paper's.

    K = - sum_{t=2..T} E_q[KL(bridge || reverse)] + H_q(X^T | X^0) - H_q(X^1 | X^0) - H_p(X^T)

    The last reverse step is *set* to the forward kernel with b_1 (the edge effect of Appendix B.2), so the
    network is not asked at t = 1, and K says nothing without its b_1. The cross entropies were dropped because
    they cancel for data of zero mean and unit variance (Gaussian), or with mean equal to the rate (binomial).
    Elsewhere it is no bound: use :class:`AllSteps`.

    Returns:
        Shape (batch...), nats, with one draw of x^t a step.

    >>> from numpyro_diffusion import GaussianKernel, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> paper_bound(kernel, standard_normal, jnp.ones((5, 2)), jax.random.key(0)).shape
    (5,)

    References: Sohl-Dickstein et al. 2015, Eq. 14 and Appendix B.2.
    """
    prior, edge = paper_end_terms(kernel, transition, x_0)
    return sum_of_step_terms(kernel, transition, x_0, key, context, first=2) + prior + edge


def paper_end_terms(kernel: Kernel, transition: Transition, x_0: Array) -> tuple[Array, Array]:
    """What stands in Eq. 14 for the prior term and for step 1: H_q(X^T | X^0) - H_p(X^T) and -H_q(X^1 | X^0).

    Returns:
        Two arrays of shape (batch...), nats.
    """
    prior = kernel.marginal(x_0, kernel.num_steps).entropy() - kernel.stationary(jnp.shape(x_0)).entropy()
    return _sum_event(transition, prior), -_sum_event(transition, kernel.marginal(x_0, 1).entropy())


def step_term(
    kernel: Kernel, transition: Transition, x_0: Array, t: Array, key: jax.Array, context: Array | None
) -> Array:
    """Draw x^t given x^0 and score the reverse step there; t broadcasts with the batch shape."""
    return score_step(kernel, transition, x_0, draw_state(kernel, transition, x_0, t, key), t, context)


def draw_state(kernel: Kernel, transition: Transition, x_0: Array, t: Array, key: jax.Array) -> Array:
    """A draw of q(x^t | x^0), in the shape of x_0."""
    return kernel.marginal(x_0, expand_right(t, transition.event_dim)).sample(key)


def score_step(
    kernel: Kernel, transition: Transition, x_0: Array, x_t: Array, t: Array, context: Array | None
) -> Array:
    """What step t adds to the bound at x^t, shape (batch...), nats."""
    law = reverse_step(kernel, transition, x_t, t, context)
    return _sum_event(transition, kernel.bound_term(law, x_t, x_0, expand_right(t, transition.event_dim)))


def log_trajectory_weight(
    kernel: Kernel, transition: Transition, x_0: Array, key: jax.Array, context: Array | None
) -> Array:
    """The log weight log p(x^{0:T}) - log q(x^{1:T} | x^0) of one forward trajectory, drawn from its end back.

    In this order each step compares two laws of the same x^{t-1} that nearly agree, which float32 can do.
    """
    top = kernel.num_steps
    marginal, stationary = kernel.marginal(x_0, top), kernel.stationary(jnp.shape(x_0))
    x_top = marginal.sample(jax.random.fold_in(key, top))
    log_weight = stationary.log_prob(x_top) - marginal.log_prob(x_top)

    def step(carry: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], None]:
        x_t, log_weight = carry
        law = reverse_step(kernel, transition, x_t, t, context)
        bridge = kernel.bridge(x_t, x_0, t)
        x_previous = bridge.sample(jax.random.fold_in(key, t - 1))
        return (x_previous, log_weight + law.log_prob(x_previous) - bridge.log_prob(x_previous)), None

    (x_1, log_weight), _ = jax.lax.scan(step, (x_top, log_weight), jnp.arange(2, top + 1), reverse=True)
    log_weight = log_weight + reverse_step(kernel, transition, x_1, 1, context).log_prob(x_0)
    return _sum_event(transition, log_weight)


def log_path_ratio(kernel: Kernel, transition: Transition, path: Array, context: Array | None = None) -> Array:
    """Log p(x^{0:T}) - log q(x^{1:T} | x^0) of given paths, the terms of Eq. 9, one pass through the network.

    Each term compares two laws of the same x^{t-1}, so that nothing large is subtracted.

    Args:
        kernel: one step.
        transition: the network.
        path: shape (batch..., T + 1, event...), index 0 of the time axis is x^0.
        context: as for the transition, or None.

    Returns:
        Shape (batch...), nats.
    """
    axis = path.ndim - 1 - transition.event_dim
    before, after = (jax.lax.slice_in_dim(path, start, stop, axis=axis) for start, stop in ((0, -1), (1, None)))
    x_0, x_top = (jax.lax.index_in_dim(path, index, axis=axis, keepdims=False) for index in (0, -1))
    if context is not None:
        context = jnp.expand_dims(context, context.ndim - len(transition.context_shape or ()))
    t = jnp.arange(1, kernel.num_steps + 1)
    law = reverse_step(kernel, transition, after, t, context)
    t_event = expand_right(t, transition.event_dim)
    bridge = kernel.bridge(after, jnp.expand_dims(x_0, axis), t_event)
    # At t = 1 the bridge is the point x^0 itself, and p's density stands alone.
    steps = law.log_prob(before) - jnp.where(t_event == 1, 0.0, bridge.log_prob(before))
    ends = kernel.stationary(jnp.shape(x_top)).log_prob(x_top) - kernel.marginal(x_0, kernel.num_steps).log_prob(x_top)
    return steps.sum(tuple(range(axis, steps.ndim))) + _sum_event(transition, ends)


def _sum_event(transition: Transition, x: Array) -> Array:
    return x.sum(tuple(range(x.ndim - transition.event_dim, x.ndim)))


def _repeat(transition: Transition, x_0: Array, count: int) -> Array:
    """x_0 with a new leading axis of ``count`` copies; without the axis for one, which spares XLA layout changes."""
    return x_0 if count == 1 else jnp.broadcast_to(x_0, (count, *x_0.shape))


def _batch_shape(transition: Transition, x_0: Array) -> Shape:
    return jnp.shape(x_0)[: jnp.ndim(x_0) - transition.event_dim]
