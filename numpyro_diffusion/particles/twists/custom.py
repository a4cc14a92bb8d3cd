"""A twist of the user's own: a function of one particle."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..._checks import expected
from ..._typing import Array
from ..steps import Step, TiltedStep
from ..target import States, Target
from .base import finite, num_particles

__all__ = ["Custom"]


@dataclasses.dataclass(frozen=True)
class Custom:
    """A user's twist: a differentiable function of one particle.

    Args:
        function: ``(x_t, t, x_0, log_r) -> log psi_t``. ``x_t`` and ``x_0`` (denoised) map site names to states,
            ``log_r`` maps such a mapping to log r, shape (E...), the shape of the result too; t is the longest chain's
            level.
    """

    function: Callable[[States, Array, States, Callable[[States], Array]], Array]
    num_prior_draws = 0

    def num_passes_back(self, target: Target) -> int:
        return 0 if all(target.is_discrete(name) for name in target.chains) else 1

    def prepare(self, target: Target, prior_draws: States) -> None:
        return None

    def look(self, target: Target, constants: Any, x: States, step: Array) -> tuple[Array, Step]:
        smooth = {name: value for name, value in x.items() if not target.is_discrete(name)}
        log_r = target.log_likelihood

        def log_psi(smooth: States) -> tuple[Array, Any]:
            states, steps, x_0 = {**x, **smooth}, {}, {}
            for name, x_t in states.items():
                output, steps[name] = target.network(name, x_t, step)
                x_0[name] = target.expected(name, output, x_t, step)
            value = jax.vmap(lambda x_t, x_0: self.function(x_t, step, x_0, log_r))(states, x_0)
            wanted = num_particles(x) + target.element_shape
            if jnp.shape(value) != wanted:
                raise ValueError(
                    expected(
                        f"a twist of shape {target.element_shape} for one particle",
                        f"shape {jnp.shape(value)[1:]}",
                        "Return log psi, one number for each element that is filtered by itself.",
                    )
                )
            return value, steps

        value, pull, steps = jax.vjp(log_psi, smooth, has_aux=True)
        (gradient,) = pull(jnp.ones_like(value))
        tilted = {name: target.chains[name].kernel.tilt(steps[name], finite(slope)) for name, slope in gradient.items()}
        return value, TiltedStep(steps, tilted)
