r"""One step of a diffusion, forward and back: what every kernel must offer.

A kernel is *elementwise*: coordinates are independent given their neighbours in time, so each distribution below is a
NumPyro distribution whose ``batch_shape`` is the full shape of ``x`` and whose event is a single number.
The chains know which trailing dimensions are the event, and sum over them. The time index ``t`` is an
integer or an integer array that broadcasts against ``x``.

    stationary   pi(x^T)
    step         q(x^t | x^{t-1})                   t = 1..T
    marginal     q(x^t | x^0)                       t = 0..T
    bridge       q(x^{t-1} | x^t, x^0)              t = 1..T, at t = 1 the point mass at x^0
    reverse      p(x^{t-1} | x^t)                   t = 1..T, from the network's output

A new kernel subclasses :class:`Kernel`, gives these and the few methods below, and every chain, estimate and engine
that its mathematics allows works with it. No kernel knows a network, a batch or a trajectory.

Everything else that an engine asks of a step is algebra on these distributions, and stands here once. For real states,

    q(x^t | x^0) = N(a_t x^0, n_t)                       ``signal_and_noise``
    q(x^{t-1} | x^t, x^0) = N(c_t x^0 + ..., lower_t)    ``bridge_terms``
    r_t^2 = S^2 n_t / (a_t^2 S^2 + n_t)                  ``denoised_variance``: Var[x^0 | x^t] for data N(0, S^2)
    Cov[x^0 | x^t] = (n_t / a_t) d E[x^0 | x^t] / d x^t  ``denoising_gain`` is the factor (Tweedie's formula)
    Var[x^0 | x^t] = (s_t^2 - lower_t) / c_t^2           ``variance_left``, which a reverse step of variance s_t^2 has

For discrete states, 0..K-1 in each coordinate,

    p(x^0 = k | x^t)                                     ``state_probabilities``
    the reverse step when p(x^0 = k | x^t) is multiplied by exp(f_k)       ``reweighted``
    a step multiplied by exp(f_k) at x^{t-1} = k                           ``multiplied``

References: Sohl-Dickstein et al. 2015, Table App. 1 and Sections 2.1, 2.2 and 2.5.
"""

import abc
import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution
from numpyro.distributions.constraints import Constraint

from .._checks import expected
from .._typing import Array, ArrayLike, PyTree, Shape
from ..schedules import Schedule

__all__ = ["Kernel"]


class Kernel(abc.ABC):
    """One step of the forward and of the reverse chain.

    Attributes:
        schedule: b_1..b_T.
        is_discrete: whether the states are discrete.
        num_states: K for discrete states 0..K-1, else None.
        element_support: the constraint that every coordinate satisfies.
    """

    schedule: Schedule
    is_discrete: ClassVar[bool]
    num_states: int | None = None
    element_support: ClassVar[Constraint]

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.schedule.num_steps

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """How many arrays of x_t's shape the transition network returns: one alone, more as a tuple."""

    @abc.abstractmethod
    def check_data(self, name: str, value: ArrayLike) -> None:
        """Raise if ``value`` cannot be a state of the chain (values only where they are concrete)."""

    @abc.abstractmethod
    def stationary(self, shape: Shape) -> Distribution:
        """pi, the distribution of x^T in the reverse chain, with ``batch_shape == shape``."""

    @abc.abstractmethod
    def step(self, x_previous: ArrayLike, t: ArrayLike) -> Distribution:
        """q(x^t | x^{t-1}), t in 1..T."""

    @abc.abstractmethod
    def marginal(self, x_0: ArrayLike, t: ArrayLike) -> Distribution:
        """q(x^t | x^0), t in 0..T; t steps at once."""

    @abc.abstractmethod
    def bridge(self, x_t: ArrayLike, x_0: ArrayLike, t: ArrayLike) -> Distribution:
        """q(x^{t-1} | x^t, x^0), t in 1..T."""

    @abc.abstractmethod
    def reverse(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> Distribution:
        """p(x^{t-1} | x^t), t in 1..T, from the network's output at (x_t, t)."""

    @abc.abstractmethod
    def denoised(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> ArrayLike:
        """The network's estimate of E[x^0 | x^t]."""

    @abc.abstractmethod
    def tilt(self, step: Any, slope: ArrayLike) -> Distribution:
        """The distribution multiplied by exp(slope * x) and renormalised.

        For a Gaussian step this is the paper's first-order perturbation by log r, with ``slope`` the gradient of
        log r at the mean; for a Bernoulli step it is exact, with ``slope`` = log r(1) - log r(0) for that bit.

        References: Sohl-Dickstein et al. 2015, Section 2.5 and Appendix C.
        """

    @abc.abstractmethod
    def kl(self, bridge: Any, reverse: Any) -> Array:
        """KL(bridge || reverse) per coordinate, in nats, accurate when the two are close."""

    def from_noise(self, step: Any, noise: ArrayLike) -> Array:
        """The draw of a step that standard normal ``noise`` stands for.

        Raises:
            TypeError: for a kernel that has no such function, as none of discrete states has.
        """
        if not self.is_discrete:
            raise TypeError(expected("a kernel that has from_noise", type(self).__name__, "Implement it."))
        raise TypeError(
            expected(
                "a Gaussian kernel",
                type(self).__name__,
                "Discrete states are no differentiable function of normal noises; use a Gibbs or particle engine.",
            )
        )

    def at_levels(self, levels: Sequence[int]) -> "Kernel":
        """The kernel of the chain that visits these levels of noise alone, for the same network.

        A step then goes from one kept level to the next: the forward steps between them are one, and the reverse step
        takes x0hat across all of them. A kernel has it whose network says of x^0, and not of x^{t-1}, what it says.

        Args:
            levels: rising integers out of 1..T, the last of them T.

        Raises:
            TypeError: for a kernel that has no such method.
        """
        cure = "Implement it, or train a network with fewer steps."
        raise TypeError(expected("a kernel that has at_levels", type(self).__name__, cure))

    def encode(self, x_t: Array) -> Array:
        """The state as the network sees it: floating point."""
        return x_t

    def bound_term(self, reverse: Distribution, x_t: ArrayLike, x_0: ArrayLike, t: ArrayLike) -> Array:
        """What step t adds to the bound on log p(x^0), given x^t ~ q(x^t | x^0), per coordinate in nats.

        -KL(q(x^{t-1} | x^t, x^0) || p(x^{t-1} | x^t)) for t >= 2, and log p(x^0 | x^1) for t = 1.

        References: Sohl-Dickstein et al. 2015, Eq. 13.
        """
        divergence = self.kl(self.bridge(x_t, x_0, t), reverse)
        return jnp.where(jnp.asarray(t) == 1, reverse.log_prob(x_0), -divergence)

    def signal_and_noise(self, t: ArrayLike, like: ArrayLike) -> tuple[Array, Array]:
        """a_t and n_t of q(x^t | x^0) = N(a_t x^0, n_t), in t's shape and the dtype of ``like``.

        Raises:
            TypeError: for discrete states, as the four methods below.
        """
        zero, one = self._zero_and_one(like)
        at_zero = self.marginal(zero, t)
        return self.marginal(one, t).mean - at_zero.mean, at_zero.variance

    def bridge_terms(self, t: ArrayLike, like: ArrayLike) -> tuple[Array, Array]:
        """c_t, the weight of x^0 in the bridge's mean, and lower_t, the bridge's variance."""
        zero, one = self._zero_and_one(like)
        at_zero = self.bridge(zero, zero, t)
        return self.bridge(zero, one, t).mean - at_zero.mean, at_zero.variance

    def denoised_variance(self, t: ArrayLike, power: ArrayLike) -> Array:
        """r_t^2, the variance of x^0 given x^t for Gaussian data of variance ``power`` = S^2."""
        power = jnp.asarray(power, float) if not hasattr(power, "dtype") else jnp.asarray(power)
        signal, noise = self.signal_and_noise(t, power)
        return power * noise / (signal**2 * power + noise)

    def denoising_gain(self, t: ArrayLike, like: ArrayLike) -> Array:
        """n_t / a_t, which turns d E[x^0 | x^t] / d x^t into Cov[x^0 | x^t]; 0 where x^t has no signal left."""
        signal, noise = self.signal_and_noise(t, like)
        has_signal = signal > jnp.sqrt(jnp.finfo(signal.dtype).tiny)
        return jnp.where(has_signal, noise / jnp.where(has_signal, signal, 1), 0)

    def variance_left(self, reverse: Any, t: ArrayLike) -> Array:
        """Var[x^0 | x^t] that a reverse step implies, at least 0; in the shape of the step."""
        gain, lower = self.bridge_terms(t, reverse.mean)
        return jnp.maximum(reverse.variance - lower, 0) / gain**2

    def state_probabilities(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> Array:
        """P(x^0 = k | x^t) for k = 0..K-1, shape x_t.shape + (K,), from the network's output.

        Raises:
            TypeError: for real states, as the two methods below.
        """
        raise self._not_discrete("state_probabilities")

    def reweighted(self, output: PyTree, x_t: ArrayLike, t: ArrayLike, log_factor: Array) -> Any:
        """The reverse step p(x^{t-1} | x^t) when P(x^0 = k | x^t) is multiplied by exp(f_k) and renormalised.

        Args:
            output: the network's, at x_t.
            x_t: states.
            t: step, 1..T.
            log_factor: f, shape x_t.shape + (K,).
        """
        raise self._not_discrete("reweighted")

    def multiplied(self, step: Any, log_factor: Array) -> Any:
        """A step's distribution multiplied by exp(f_k) at state k and renormalised; f has shape (..., K)."""
        raise self._not_discrete("multiplied")

    def log_probabilities(self, step: Any) -> Array:
        """Log probability of every state under a step of discrete states, shape (..., K)."""
        if self.num_states is None:
            raise self._not_discrete("log_probabilities")
        states = jnp.arange(self.num_states).reshape((-1,) + (1,) * len(step.batch_shape))
        return jnp.moveaxis(step.log_prob(states), 0, -1)

    def some_state(self, key: jax.Array, shape: Shape) -> Array:
        """A state of the chain, not a sample of it: a place to try a model at."""
        if self.num_states is None:
            return jax.random.normal(key, shape)
        return jax.random.randint(key, shape, 0, self.num_states)

    def _with_schedule(self, schedule: Schedule) -> Any:
        changed = copy.copy(self)
        changed.schedule = schedule
        return changed

    def _zero_and_one(self, like: ArrayLike) -> tuple[Array, Array]:
        if self.is_discrete:
            raise TypeError(
                expected("a kernel of real states", type(self).__name__, "Discrete states have no means and gradients.")
            )
        dtype = jnp.result_type(like)
        dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
        return jnp.zeros((), dtype), jnp.ones((), dtype)

    def _not_discrete(self, method: str) -> TypeError:
        wanted = f"a kernel of discrete states that has {method}"
        return TypeError(expected(wanted, type(self).__name__, "Implement it."))
