r"""The interface of a twist: a look ahead at the data.

A twist psi_t(x^t) > 0 approximates p(y | x^t). Sequential Monte Carlo targets p(x^{t:T}) psi_t(x^t), with psi_0 = r.
Its estimate of the evidence is unbiased for every twist and every N; the twist decides its variance. The weight of a
step from x^t to x^{t-1}, proposed by q, is

    w = psi_{t-1}(x^{t-1}) p(x^{t-1} | x^t) / (psi_t(x^t) q(x^{t-1} | x^t))

An overconfident twist fails silently: only the smallest effective size over levels and the spread over islands show it.

References: Guarniero, Johansen and Lee 2017 (twisted filters); Wu et al. 2023 (twisted diffusion sampler).
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from ..._typing import Array
from ..steps import Step, TiltedStep
from ..target import States, Target

__all__ = ["NoTwist", "Twist", "finite", "num_particles", "prior_power"]


@runtime_checkable
class Twist(Protocol):
    """A look ahead. Hashable; what it computes from data is in ``constants``.

    Attributes:
        num_prior_draws: how many draws of the prior ``prepare`` wants; 0 for none.

    >>> isinstance(NoTwist(), Twist)
    True
    """

    @property
    def num_prior_draws(self) -> int: ...

    def prepare(self, target: Target, prior_draws: States) -> Any:
        """What does not depend on particles, as a pytree.

        Args:
            target: chains and factor.
            prior_draws: draws of the diffusion sites, (M, site shape...).
        """

    def look(self, target: Target, constants: Any, x: States, step: Array) -> tuple[Array, Step]:
        """Log psi of every particle, shape (N, E...), and how they should move."""

    def num_passes_back(self, target: Target) -> int:
        """Passes back through the networks at each step."""


@dataclasses.dataclass(frozen=True)
class NoTwist:
    """psi = 1: the bootstrap filter. Particles move by the prior, and meet the data at the end.

    >>> NoTwist() == NoTwist()  # TwistedSMC(model, twist=NoTwist()), or twist="none"
    True
    """

    num_prior_draws = 0

    def num_passes_back(self, target: Target) -> int:
        return 0

    def prepare(self, target: Target, prior_draws: States) -> None:
        return None

    def look(self, target: Target, constants: Any, x: States, step: Array) -> tuple[Array, Step]:
        steps = {name: target.network(name, x[name], step)[1] for name in x}
        return jnp.zeros(num_particles(x) + target.element_shape), TiltedStep(steps, {})


def prior_power(target: Target, prior_draws: States, name: str) -> Array:
    """S^2: the variance of a site's draws, averaged over coordinates."""
    return jnp.var(jnp.asarray(prior_draws[name], float), axis=0).mean()


def finite(x: Array) -> Array:
    """Zero where a number is NaN or infinite."""
    return jnp.where(jnp.isfinite(x), x, 0.0)


def num_particles(x: States) -> tuple[int, ...]:
    """(N,)."""
    return (next(iter(x.values())).shape[0],)
