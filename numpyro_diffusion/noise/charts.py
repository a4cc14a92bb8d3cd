r"""A reverse chain whose steps are corrected by learned numbers, as a law of the chain's standard normal noises.

x^0 has no tractable density, its path has. With x^T = eps^T and x^{t-1} = m(x^t) + s(x^t) eps^{t-1}, where m and s are
those of p(x^{t-1} | x^t), the law of the noises is, for every coordinate,

    eps^T ~ N(shift_T, scale_T^2)
    eps^{t-1} | x^t ~ N(shift_t + gain_t m(x^t), scale_t^2 (1 + (inflation_t - 1) u(x^t)))

    shift       moves the step, in units of s: x^{t-1} moves by s shift
    gain        pulls the step towards 0 (gain < 0) or away from it, as an observation's precision does
    scale       multiplies s
    inflation   multiplies that part u of the step's variance which is due to not knowing x^0,
                u = 1 - (bridge variance) / s^2 in [0, 1]: a posterior knows x^0 better than the prior does
                (where s is the same for all x^t it does what scale does, which is harmless)

For x this says q(x^{t-1} | x^t) = N(m + s (shift + gain m), s^2 scale^2 (1 + (inflation - 1) u)), and the density of
the noise is log q(x^{t-1} | x^t) + log s: all s cancel, so that steps of tiny variance lose no digits. Units of s also
keep training even: a change of one of these numbers costs about as many nats at t = 1, where s is small, as at T. With
shift = gain = 0 and scale = inflation = 1 the law is N(0, I), and x has exactly the prior's law.

The gradient of a draw's density log q(eps) in the learned numbers has two parts: through the draw, and with the draw
held fixed. The second has mean 0 under q, and is most of the noise of a bound's gradient; ``path_gradient`` leaves it
out. Then the noise vanishes as q comes near the posterior.

Assumed: a Gaussian kernel. Not captured: correlations of coordinates beyond those that the network makes.

References: Roeder, Wu, Duvenaud 2017, Sticking the landing (the gradient through the draw).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._numerics import expand_right
from .._pytree import register_pytree
from .._typing import Array, ArrayLike, Shape
from ..chains import ReverseChain
from ..chains.base import ChainDistribution
from ..kernels import Kernel
from ..transition import Transition, reverse_step

__all__ = ["GuideTilt", "GuidedNoise", "StepCorrection"]


class StepCorrection(NamedTuple):
    """What the guide learns of the steps, each of shape (batch..., T, event...); index t - 1 belongs to step t."""

    gain: Array
    inflation: Array
    shift: Array
    scale: Array

    def noise_law(self, kernel: Kernel, law: Any, x_t: Array, t: ArrayLike) -> tuple[Array, Array]:
        """Mean and standard deviation of eps^{t-1} given x^t, from this step's corrections (without the time axis).

        Args:
            kernel: the chain's.
            law: p(x^{t-1} | x^t).
            x_t: shape (batch..., event...).
            t: steps that broadcast with x_t.
        """
        bridge: Any = kernel.bridge(x_t, x_t, t)
        unknown = jnp.maximum(1 - (bridge.scale / law.scale) ** 2, 0)
        return self.shift + self.gain * law.loc, self.scale * jnp.sqrt(1 + (self.inflation - 1) * unknown)


@register_pytree(data=("correction",), static=())
class GuideTilt:
    """The guide's q(x^{t-1} | x^t) as a proposal for ``TwistedSMC(model, proposal={"x": tilt})``.

    The guide's law of x^T is no step and not part of it: a particle engine starts at N(0, I).

    Args:
        correction: learned corrections of all steps.
    """

    correction: StepCorrection

    def __init__(self, correction: StepCorrection) -> None:
        self.correction = correction

    def __call__(
        self, kernel: Kernel, transition: Transition, x_t: Array, t: ArrayLike, context: Array | None
    ) -> dist.Normal:
        """The elementwise law of x^{t-1} given x^t.

        Args:
            kernel: the chain's, Gaussian.
            transition: the chain's.
            x_t: shape (batch..., event...); the guide's plates are the rightmost of the batch.
            t: integers that broadcast with the batch shape.
            context: None or an array.
        """
        event_dim = transition.event_dim
        law = reverse_step(kernel, transition, x_t, t, context)
        step = jax.tree.map(lambda values: _at_step(values, jnp.asarray(t), event_dim), self.correction)
        loc, scale = step.noise_law(kernel, law, x_t, expand_right(t, event_dim))
        return dist.Normal(law.loc + law.scale * loc, law.scale * scale, validate_args=False)


class GuidedNoise(ChainDistribution):
    """The guide's law of a chain's noises eps^{0:T}, which it makes along the path they stand for.

    ``event_shape`` is the chain's (T + 1, *event). A draw and its density cost T network calls in a row; a draw brings
    its density along.

    Args:
        chain: whose noises these are.
        correction: of the steps, shape (batch..., T, event...) that broadcasts with the chain's batch.
        start: mean and standard deviation of eps^T = x^T, shape (batch..., event...).
        path_gradient: the density that a draw brings along has only the gradient through the draw; see the module's
            text. The density of a given value has its whole gradient always.
    """

    pytree_data_fields = ("chain", "correction", "start")
    pytree_aux_fields = ("path_gradient",)

    def __init__(
        self,
        chain: ReverseChain,
        correction: StepCorrection,
        start: tuple[Array, Array],
        *,
        path_gradient: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.chain = chain
        self.correction = correction
        self.start = start
        self.path_gradient = path_gradient
        super().__init__(chain.kernel, chain.batch_shape, chain.event_shape, validate_args=validate_args)

    def sample_with_intermediates(
        self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        noise, log_prob = self._walk(self._standard_normal(key, sample_shape + self.batch_shape), is_noise=False)
        return noise, [log_prob]

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        return intermediates[0] if intermediates else super().log_prob(value)

    def _sample(self, key: jax.Array, batch_shape: Shape) -> Array:
        return self._walk(self._standard_normal(key, batch_shape), is_noise=False)[0]

    def _log_prob(self, value: Array, batch_shape: Shape) -> Array:
        return self._walk(value, is_noise=True)[1]

    def _standard_normal(self, key: Any, batch_shape: Shape) -> Array:
        return jax.random.normal(key, batch_shape + self.event_shape)

    def _walk(self, values: Array, *, is_noise: bool) -> tuple[Array, Array]:
        """Down the chain with given noises, or with those that standard normal ``values`` become.

        Args:
            values: shape (batch..., T + 1, event...).
            is_noise: which of the two the values are.

        Returns:
            The noises, and their log density in nats, shape (batch...).
        """
        chain = self.chain
        event_dim = chain.transition.event_dim
        context = None if chain.context is None else jnp.asarray(chain.context)
        held = jax.lax.stop_gradient if self.path_gradient and not is_noise else lambda numbers: numbers

        def settle(value: Array, law: tuple[Array, Array], density: tuple[Array, Array]) -> tuple[Array, Array]:
            noise = value if is_noise else law[0] + law[1] * value
            log_prob = -0.5 * ((noise - density[0]) / density[1]) ** 2 - jnp.log(density[1])
            return noise, (log_prob - 0.5 * math.log(2 * math.pi)).sum(tuple(range(-event_dim, 0)))

        def step(x_t: Array, inputs: tuple[Array, Array, StepCorrection]) -> tuple[Array, tuple[Array, Array]]:
            t, value, correction = inputs
            law = reverse_step(chain.kernel, chain.transition, x_t, t, context)
            laws = (numbers.noise_law(chain.kernel, law, x_t, t) for numbers in (correction, held(correction)))
            noise, log_prob = settle(value, *laws)
            return chain.kernel.from_noise(law, noise), (noise, log_prob)

        values, correction = jax.tree.map(
            lambda array: jnp.moveaxis(array, -1 - event_dim, 0), (values, self.correction)
        )
        first, first_log_prob = settle(values[-1], self.start, held(self.start))
        steps = jnp.arange(1, chain.kernel.num_steps + 1)
        _, (noises, log_probs) = jax.lax.scan(step, first, (steps, values[:-1], correction), reverse=True)
        noises = jnp.concatenate([noises, first[None]])
        return jnp.moveaxis(noises, 0, -1 - event_dim), log_probs.sum(0) + first_log_prob


def _at_step(values: Array, t: Array, event_dim: int) -> Array:
    """Step t's slice of an array (batch..., T, event...), for a t that may differ from one element to the next."""
    batch = values.shape[: values.ndim - event_dim - 1]
    places = [jnp.arange(size).reshape((size,) + (1,) * (len(batch) - 1 - axis)) for axis, size in enumerate(batch)]
    return values[(*places, t - 1)]
