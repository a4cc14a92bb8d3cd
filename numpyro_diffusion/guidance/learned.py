r"""Guidance learned by a variational guide: numbers that correct every step.

With m and s of p(x^{t-1} | x^t),

    q(x^{t-1} | x^t) = N(m + s (shift_t + gain_t m), s^2 scale_t^2 (1 + (inflation_t - 1) u(x^t)))

    shift       moves the step, in units of s
    gain        pulls the step towards 0 (gain < 0) or away from it, as an observation's precision does
    scale       multiplies s
    inflation   multiplies that part u of the step's variance which is due to not knowing x^0,
                u = 1 - lower_t / s^2 in [0, 1]: a posterior knows x^0 better than the prior does
                (where s is the same for all x^t it does what scale does, which is harmless)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._checks import expected
from .._pytree import register_pytree
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from ..kernels import Kernel

__all__ = ["LearnedGuidance", "StepCorrection"]


class StepCorrection(NamedTuple):
    """What the guide learns of the steps, each of shape (batch..., T, event...); index t - 1 belongs to step t.

    Attributes:
        gain: factor of the step's own mean in the noise's mean.
        inflation: factor of the variance that the step does not owe to the bridge.
        shift: added to the noise's mean, in units of the step's standard deviation.
        scale: factor of the noise's standard deviation, > 0.
    """

    gain: Array
    inflation: Array
    shift: Array
    scale: Array

    def of_noise(self, kernel: Kernel, step: Any, t: ArrayLike) -> tuple[Array, Array]:
        """Mean and standard deviation of eps^{t-1} given x^t, from this step's corrections (without the time axis).

        Args:
            kernel: the chain's.
            step: p(x^{t-1} | x^t).
            t: steps that broadcast with the state.
        """
        _, lower = kernel.bridge_terms(t, step.loc)
        unknown = jnp.maximum(1 - lower / step.scale**2, 0)
        return self.shift + self.gain * step.loc, self.scale * jnp.sqrt(1 + (self.inflation - 1) * unknown)


@register_pytree(data=("correction",), static=())
class LearnedGuidance:
    """The guide's q(x^{t-1} | x^t) as a proposal for ``TwistedSMC(model, proposal={"x": guidance})``.

    The guide's distribution of x^T is no step and not part of it: a particle engine starts at N(0, I). It says nothing
    of the data beforehand, psi = 1.

    Args:
        correction: learned corrections of all steps; the guide's plates are the rightmost of the batch.
    """

    correction: StepCorrection

    def __init__(self, correction: StepCorrection) -> None:
        self.correction = correction

    def __call__(self, chain: ReverseChain, x_t: Array, t: ArrayLike) -> dist.Normal:
        """The corrected step.

        Raises:
            ValueError: for corrections of another number of steps, event or batch than the chain's state.
        """
        self._check(chain, x_t)
        prior = chain.reverse(x_t, t)
        step = jax.tree.map(lambda values: _at_step(values, jnp.asarray(t), chain.state_dim), self.correction)
        loc, scale = step.of_noise(chain.kernel, prior, chain.beside_state(t))
        return dist.Normal(prior.loc + prior.scale * loc, prior.scale * scale, validate_args=False)

    def _check(self, chain: ReverseChain, x_t: Array) -> None:
        own = (chain.num_steps, *chain.state_shape)
        batch = x_t.shape[: x_t.ndim - chain.state_dim]
        for name, values in self.correction._asdict().items():
            found, plates = values.shape[values.ndim - len(own) :], values.shape[: values.ndim - len(own)]
            fits = len(plates) <= len(batch) and all(
                size in (1, there) for size, there in zip(plates[::-1], batch[::-1], strict=False)
            )
            if values.ndim < len(own) or found != own or not fits:
                raise ValueError(
                    expected(
                        f"a learned {name} of shape (plates..., T, *event), here (..., {', '.join(map(str, own))}) "
                        f"for states of batch {batch}",
                        f"shape {values.shape}",
                        "Take the proposals of a guide of this model, with as many data.",
                    )
                )


def _at_step(values: Array, t: Array, event_dim: int) -> Array:
    """Step t's slice of an array (batch..., T, event...), for a t that may differ from one element to the next."""
    batch = values.shape[: values.ndim - event_dim - 1]
    places = [jnp.arange(size).reshape((size,) + (1,) * (len(batch) - 1 - axis)) for axis, size in enumerate(batch)]
    return values[(*places, t - 1)]
