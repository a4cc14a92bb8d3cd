r"""One step of a diffusion, forward and back: what every kernel must offer.

A kernel is *elementwise*: coordinates are independent given their neighbours in time, so each law below is a
NumPyro distribution whose ``batch_shape`` is the full shape of ``x`` and whose event is a single number.
The chains know which trailing dimensions are the event, and sum over them. The time index ``t`` is an
integer or an integer array that broadcasts against ``x``.

    stationary   pi(x^T)
    step         q(x^t | x^{t-1})                   t = 1..T
    marginal     q(x^t | x^0)                       t = 0..T
    bridge       q(x^{t-1} | x^t, x^0)              t = 1..T, at t = 1 the point mass at x^0
    reverse      p(x^{t-1} | x^t)                   t = 1..T, from the network's output

A new kernel subclasses :class:`Kernel`, gives these and the few methods below, and every chain, bound and
engine works with it. No kernel knows a network, a batch or a trajectory.

References: Sohl-Dickstein et al. 2015, Table App. 1 and Sections 2.1, 2.2 and 2.5.
"""

import abc
from typing import Any, ClassVar

import jax.numpy as jnp
from numpyro.distributions import Distribution
from numpyro.distributions.constraints import Constraint

from .._typing import Array, ArrayLike, PyTree, Shape
from ..schedules import Schedule

__all__ = ["Kernel"]


class Kernel(abc.ABC):
    """One step of the forward and of the reverse chain.

    Attributes:
        schedule: b_1..b_T.
        is_discrete: whether the states are discrete.
        element_support: the constraint that every coordinate satisfies.
    """

    schedule: Schedule
    is_discrete: ClassVar[bool]
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
        """pi, the law of x^T in the reverse chain, with ``batch_shape == shape``."""

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
    def tilt(self, law: Any, slope: ArrayLike) -> Distribution:
        """The law multiplied by exp(slope * x) and renormalised.

        For a Gaussian step this is the paper's first-order perturbation by log r, with ``slope`` the gradient of
        log r at the mean; for a Bernoulli step it is exact, with ``slope`` = log r(1) - log r(0) for that bit.

        References: Sohl-Dickstein et al. 2015, Section 2.5 and Appendix C.
        """

    @abc.abstractmethod
    def kl(self, bridge: Any, reverse: Any) -> Array:
        """KL(bridge || reverse) per coordinate, in nats, accurate when the two are close."""

    @abc.abstractmethod
    def from_noise(self, law: Any, noise: ArrayLike) -> Array:
        """The draw of a step's law that standard normal ``noise`` stands for.

        Raises:
            TypeError: for a discrete kernel, whose draws are no differentiable function of noise.
        """

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
