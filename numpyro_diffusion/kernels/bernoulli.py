r"""The Bernoulli kernel (the paper's binomial, one trial per coordinate): forget bits.

With probability b_t a bit is drawn anew from B(rate), else it is kept. With abar_t, v_t = 1 - abar_t:

    pi                         B(rate)
    q(x^t | x^{t-1})           B((1 - b_t) x^{t-1} + b_t rate)
    q(x^t | x^0)               B(abar_t x^0 + v_t rate)
    q(x^{t-1} | x^t, x^0)      Bayes' rule on one bit: weight of x^{t-1} = k is q(x^t | k) q(k | x^0)
    p(x^{t-1} | x^t)           from the network's logits, by ``parameterization``:
        "x0"       sum over k of bridge(x^{t-1} | x^t, x^0 = k) p(x^0 = k | x^t), with p(x^0 = 1 | x^t) = sigmoid(out)
        "logits"   B(sigmoid(out)), the paper's f_b

All weights are sums of products of probabilities, nothing is subtracted, and they meet in log space, so that a step
that flips a bit once in ten thousand keeps all its digits in float32. For the same reason the distributions are
:class:`BernoulliLogits` of this module and not NumPyro's, whose log_prob subtracts two numbers near ``logits``.

Not assumed: that the data's mean is the rate (the paper's form of the bound does; see ``paper_bound``).

References: Sohl-Dickstein et al. 2015, Table App. 1, Sections 2.1, 2.2; Austin et al. 2021 ("x0" parameterisation).
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._checks import check_binary, check_choice, expected, is_concrete
from .._compat.numpyro import validate_sample
from .._numerics import safe_log
from .._pytree import register_pytree
from .._typing import Array, ArrayLike, PyTree, Shape
from ..schedules import Schedule
from .base import Kernel

__all__ = ["BernoulliKernel", "BernoulliLogits"]

Parameterization = Literal["x0", "logits"]


class BernoulliLogits(dist.BernoulliLogits):
    """NumPyro's Bernoulli with log_prob and entropy accurate to rounding, and finite slopes, at any logit."""

    def __init__(self, logits: ArrayLike, *, validate_args: bool | None = None) -> None:
        super().__init__(logits, validate_args=validate_args)

    def sample(self, key: jax.Array | None, sample_shape: Shape = ()) -> Array:
        # NumPyro's own adds bool to int, which jax.numpy_dtype_promotion("strict") refuses; the draws are the same.
        return jax.random.bernoulli(key, self.probs, sample_shape + self.batch_shape).astype(int)  # type: ignore[arg-type]

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        signed = jnp.where(_is_one(value) == 1, self.logits, -self.logits)
        return jnp.broadcast_to(jax.nn.log_sigmoid(signed), jnp.broadcast_shapes(jnp.shape(value), self.batch_shape))

    def entropy(self) -> Array:
        """In nats. H = log(1 + e^-|l|) + |l| e^-|l| / (1 + e^-|l|): positive terms only."""
        size = jnp.abs(self.logits)
        return jnp.log1p(jnp.exp(-size)) + size * jax.nn.sigmoid(-size)


@register_pytree(data=("schedule", "rate"), static=("parameterization",))
class BernoulliKernel(Kernel):
    """Binary diffusion towards independent bits with probability ``rate``.

    States are arrays of 0 and 1 of any dtype; draws are integers, as NumPyro's Bernoulli gives them.

    Args:
        schedule: b_1..b_T, for example ``schedules.constant_fraction(T)``.
        rate: probability of a one under pi, in (0, 1), a number or an array that broadcasts with the event.
            Take the data's mean, per coordinate or overall.
        parameterization: ``"x0"`` (the network gives logits of x^0) or ``"logits"`` (of x^{t-1}, the paper's).

    Raises:
        ValueError: for a rate outside (0, 1) or an unknown parameterisation.

    >>> from numpyro_diffusion import schedules
    >>> kernel = BernoulliKernel(schedules.constant_fraction(4), rate=0.2)
    >>> round(float(kernel.marginal(1, 2).probs), 3)
    0.6
    """

    is_discrete = True
    num_states = 2
    element_support = constraints.boolean

    def __init__(self, schedule: Schedule, *, rate: ArrayLike = 0.5, parameterization: Parameterization = "x0") -> None:
        check_choice("parameterization", parameterization, Parameterization)
        if is_concrete(rate) and not np.all((np.asarray(rate) > 0) & (np.asarray(rate) < 1)):
            raise ValueError(
                expected(
                    "rate in (0, 1)",
                    rate,
                    "Take the data's mean; drop coordinates that never change, the model has nothing to say there.",
                )
            )
        self.schedule = schedule
        self.rate = rate
        self.parameterization = parameterization

    @property
    def num_outputs(self) -> int:
        return 1

    def at_levels(self, levels: Sequence[int]) -> "BernoulliKernel":
        if self.parameterization == "logits":
            cure = "It says of x^{t-1} what it says; train another network with fewer steps."
            raise TypeError(expected("a network of x^0 to respace", "parameterization='logits'", cure))
        return self._with_schedule(self.schedule.at_levels(levels))

    def check_data(self, name: str, value: ArrayLike) -> None:
        check_binary(name, value)

    def encode(self, x_t: Array) -> Array:
        return jnp.asarray(x_t, float)

    def stationary(self, shape: Shape) -> BernoulliLogits:
        rate = jnp.asarray(self.rate, float)
        return _bernoulli(jnp.broadcast_to(jnp.log(rate) - jnp.log1p(-rate), shape))

    def step(self, x_previous: ArrayLike, t: ArrayLike) -> BernoulliLogits:
        beta = self._at(self.schedule.beta, t)
        return _from_weights(*self._forget(_is_one(x_previous), 1 - beta, beta))

    def marginal(self, x_0: ArrayLike, t: ArrayLike) -> BernoulliLogits:
        return _from_weights(*self._marginal_weights(_is_one(x_0), t))

    def bridge(self, x_t: ArrayLike, x_0: ArrayLike, t: ArrayLike) -> BernoulliLogits:
        return _from_weights(*self._bridge_weights(x_t, _is_one(x_0), t))

    def reverse(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> BernoulliLogits:
        if self.parameterization == "logits":
            return _bernoulli(output)
        log_one, log_zero = zip(
            self._log_mixture_part(x_t, 1.0, jax.nn.log_sigmoid(output), t),
            self._log_mixture_part(x_t, 0.0, jax.nn.log_sigmoid(-output), t),
            strict=True,
        )
        return _bernoulli(jnp.logaddexp(*log_one) - jnp.logaddexp(*log_zero))

    def denoised(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> Array:
        """P(x^0 = 1 | x^t). Raises ValueError for ``"logits"``, which says nothing of x^0."""
        if self.parameterization != "x0":
            raise ValueError(
                expected("parameterization='x0'", repr(self.parameterization), "Only it has an estimate of x^0.")
            )
        return jax.nn.sigmoid(output)

    def tilt(self, step: Any, slope: ArrayLike) -> BernoulliLogits:
        return _bernoulli(step.logits + slope)

    def kl(self, bridge: Any, reverse: Any) -> Array:
        return sum(  # type: ignore[return-value]
            jax.nn.sigmoid(sign * bridge.logits)
            * (jax.nn.log_sigmoid(sign * bridge.logits) - jax.nn.log_sigmoid(sign * reverse.logits))
            for sign in (1, -1)
        )

    def state_probabilities(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> Array:
        """Of 0 and 1: the network's, or for a network of x^{t-1} alone those of independent bits with mean ``rate``."""
        if self.parameterization == "x0":
            one = self.denoised(output, x_t, t)
        else:
            one, _ = self._marginal_weights(_is_one(x_t), t)  # bits at their rate forget back as they forget
        return jnp.stack([1 - one, one], axis=-1)

    def reweighted(self, output: PyTree, x_t: ArrayLike, t: ArrayLike, log_factor: Array) -> BernoulliLogits:
        slope = log_factor[..., 1] - log_factor[..., 0]
        if self.parameterization == "x0":
            return self.reverse(output + slope, x_t, t)
        # log psi_{t-1}(k) = log E[exp(f(x^0)) | x^{t-1} = k] of independent bits with mean ``rate``.
        before = jnp.asarray(t) - 1
        log_psi = [
            jax.nn.logsumexp(log_factor, axis=-1, b=self.state_probabilities(None, jnp.full_like(x_t, bit), before))
            for bit in (0, 1)
        ]
        return self.tilt(self.reverse(output, x_t, t), log_psi[1] - log_psi[0])

    def multiplied(self, step: Any, log_factor: Array) -> BernoulliLogits:
        return self.tilt(step, log_factor[..., 1] - log_factor[..., 0])

    def _forget(self, is_one: Array, kept: Array, forgotten: Array) -> tuple[Array, Array]:
        """Probabilities of one and of zero for a bit kept with probability ``kept`` and else drawn anew."""
        rate = jnp.asarray(self.rate, float)
        return kept * is_one + forgotten * rate, kept * (1 - is_one) + forgotten * (1 - rate)

    def _marginal_weights(self, is_one: Array, t: ArrayLike) -> tuple[Array, Array]:
        return self._forget(is_one, self._at(self.schedule.alpha_bar, t), self._at(self.schedule.noise_variance, t))

    def _bridge_weights(self, x_t: ArrayLike, is_one: Array, t: ArrayLike) -> tuple[Array, Array]:
        """Bayes' rule: q(x^t | x^{t-1} = k) q(k | x^0) for k = 1 and k = 0."""
        beta = self._at(self.schedule.beta, t)
        one, zero = jnp.ones((), beta.dtype), jnp.zeros((), beta.dtype)
        prior_one, prior_zero = self._marginal_weights(is_one, jnp.asarray(t) - 1)
        after_one, after_zero = self._forget(one, 1 - beta, beta), self._forget(zero, 1 - beta, beta)
        seen_one = _is_one(x_t) == 1
        return (
            jnp.where(seen_one, after_one[0], after_one[1]) * prior_one,
            jnp.where(seen_one, after_zero[0], after_zero[1]) * prior_zero,
        )

    def _log_mixture_part(self, x_t: ArrayLike, x_0: float, log_weight: Array, t: ArrayLike) -> tuple[Array, Array]:
        """The log of p(x^0 | x^t) q(x^{t-1} = k | x^t, x^0) for k = 1 and k = 0."""
        one, zero = self._bridge_weights(x_t, _is_one(x_0), t)
        log_weight = log_weight - jnp.log(one + zero)
        return log_weight + safe_log(one), log_weight + safe_log(zero)

    @staticmethod
    def _at(values: ArrayLike, t: ArrayLike) -> Array:
        return jnp.asarray(values, float)[jnp.asarray(t)]


def _is_one(x: ArrayLike) -> Array:
    """The state as a floating-point 0 or 1."""
    return jnp.asarray(x, float)


def _bernoulli(logits: ArrayLike) -> BernoulliLogits:
    return BernoulliLogits(logits, validate_args=False)


def _from_weights(one: Array, zero: Array) -> BernoulliLogits:
    """A bit whose probabilities are in the ratio one : zero; a weight of 0 becomes the smallest number there is."""
    smallest = float(np.log(np.finfo(one.dtype).tiny))
    return _bernoulli(safe_log(one, at_zero=smallest) - safe_log(zero, at_zero=smallest))
