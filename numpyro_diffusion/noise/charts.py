r"""A reverse chain with learned corrections of its steps, as a distribution of the chain's standard normal noises.

x^0 has no tractable density, its path has. With x^T = eps^T and x^{t-1} = m(x^t) + s(x^t) eps^{t-1}, where m and s are
those of p(x^{t-1} | x^t), the distribution of the noises is, for every coordinate,

    eps^T ~ N(shift_T, scale_T^2)
    eps^{t-1} | x^t ~ N(shift_t + gain_t m(x^t), scale_t^2 (1 + (inflation_t - 1) u(x^t)))

with the four numbers and u of :mod:`numpyro_diffusion.guidance.learned`, whose q(x^{t-1} | x^t) is that of x. The log
density of the noise is log q(x^{t-1} | x^t) + log s: all s cancel, so that steps of tiny variance lose no digits. Units
of s also keep training even: a change of one of these numbers costs about as many nats at t = 1, where s is small, as
at T. With shift = gain = 0 and scale = inflation = 1 the noises are N(0, I), and x has exactly the prior's
distribution.

The gradient of a draw's density log q(eps) in the learned numbers has two parts: through the draw, and with the draw
held fixed. The second has mean 0 under q, and is most of the noise of a bound's gradient; ``path_gradient`` leaves it
out. Then the noise vanishes as q comes near the posterior.

Assumed: a Gaussian kernel. Not captured: correlations of coordinates beyond those that the network makes.

References: Roeder, Wu, Duvenaud 2017, Sticking the landing (the gradient through the draw).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, ArrayLike, Shape
from ..chains import ReverseChain
from ..chains.base import ChainDistribution
from ..guidance.learned import StepCorrection

__all__ = ["GuidedNoise"]


class GuidedNoise(ChainDistribution):
    """The guide's distribution of a chain's noises eps^{0:T}, which it makes along the path they stand for.

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
        event_dim = chain.state_dim
        held = jax.lax.stop_gradient if self.path_gradient and not is_noise else lambda numbers: numbers

        def settle(value: Array, drawn: tuple[Array, Array], density: tuple[Array, Array]) -> tuple[Array, Array]:
            noise = value if is_noise else drawn[0] + drawn[1] * value
            log_prob = -0.5 * ((noise - density[0]) / density[1]) ** 2 - jnp.log(density[1])
            return noise, (log_prob - 0.5 * math.log(2 * math.pi)).sum(tuple(range(-event_dim, 0)))

        def step(x_t: Array, inputs: tuple[Array, Array, StepCorrection]) -> tuple[Array, tuple[Array, Array]]:
            t, value, correction = inputs
            prior = chain.reverse(x_t, t)
            moments = (numbers.of_noise(chain.kernel, prior, t) for numbers in (correction, held(correction)))
            noise, log_prob = settle(value, *moments)
            return chain.kernel.from_noise(prior, noise), (noise, log_prob)

        values, correction = jax.tree.map(
            lambda array: jnp.moveaxis(array, -1 - event_dim, 0), (values, self.correction)
        )
        first, first_log_prob = settle(values[-1], self.start, held(self.start))
        steps = jnp.arange(1, chain.num_steps + 1)
        _, (noises, log_probs) = jax.lax.scan(step, first, (steps, values[:-1], correction), reverse=True)
        noises = jnp.concatenate([noises, first[None]])
        return jnp.moveaxis(noises, 0, -1 - event_dim), log_probs.sum(0) + first_log_prob
