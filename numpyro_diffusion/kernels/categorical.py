r"""The categorical kernel: forget which of K states a coordinate is in.

With probability b_t a coordinate is drawn anew from the rates pi, else it is kept. With abar_t, v_t = 1 - abar_t:

    pi                               probabilities pi_k
    q(x^t = i | x^{t-1} = j)         (1 - b_t) [i = j] + b_t pi_i
    q(x^t = i | x^0 = k)             abar_t [i = k] + v_t pi_i
    q(x^{t-1} = j | x^t, x^0)        Bayes' rule on one coordinate
    p(x^{t-1} = j | x^t)             sum over k of bridge(j | x^t, x^0 = k) p(x^0 = k | x^t), with p(x^0 = k | x^t) the
                                     softmax of the network's output

    rates = "uniform"                pi_k = 1 / K
    rates = "absorbing"              pi is all at the last state, a mask that no datum is in; needs b_T = 1

The network sees one-hot vectors, x of shape (..., event..., K), and returns one array of that shape: logits of x^0. All
weights are sums of products of probabilities, nothing is subtracted, and they meet in log space. The sum over k takes K
operations and not K^2, for q(x^{t-1} = j | x^0 = k) has one value for k = j and another for all others. A weight of 0
becomes the smallest number there is, so that logarithms and their slopes are finite.

Not assumed: an order of the states, or a distance between them.

References: Austin et al. 2021 (uniform and absorbing rates); Hoogeboom et al. 2021 (uniform).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._checks import check_integer_at_least, expected, first_index, is_concrete
from .._compat.numpyro import validate_sample
from .._numerics import safe_log
from .._pytree import register_pytree
from .._typing import Array, ArrayLike, PyTree, Shape
from ..schedules import Schedule
from .base import Kernel

__all__ = ["CategoricalKernel", "CategoricalLogits"]


class CategoricalLogits(dist.CategoricalLogits):
    """NumPyro's, with normalised logits and an entropy that is finite at any of them."""

    def __init__(self, logits: ArrayLike, *, validate_args: bool | None = None) -> None:
        super().__init__(jax.nn.log_softmax(logits, axis=-1), validate_args=validate_args)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        index = jnp.broadcast_to(jnp.asarray(value).astype(int), shape)[..., None]
        logits = jnp.broadcast_to(self.logits, (*shape, self.logits.shape[-1]))
        return jnp.take_along_axis(logits, index, axis=-1)[..., 0]

    def entropy(self) -> Array:
        """In nats."""
        return -(jnp.exp(self.logits) * self.logits).sum(-1)


@register_pytree(data=("schedule", "rates"), static=("num_states",))
class CategoricalKernel(Kernel):
    """Diffusion of coordinates with K states each, towards independent states with probabilities ``rates``.

    States are integers 0..K-1.

    Args:
        schedule: b_1..b_T, for example ``schedules.constant_fraction(T)``, which ends in b_T = 1.
        num_states: K >= 2; with ``"absorbing"`` rates the mask is one of them, the last.
        rates: ``"uniform"``, ``"absorbing"``, or probabilities of shape (K,).

    Raises:
        ValueError: for fewer than two states, rates that are no probabilities, or absorbing rates and b_T < 1.

    >>> from numpyro_diffusion import schedules
    >>> kernel = CategoricalKernel(schedules.constant_fraction(4), 3)
    >>> [round(float(chance), 3) for chance in kernel.marginal(2, 2).probs]
    [0.167, 0.167, 0.667]
    """

    is_discrete = True

    def __init__(self, schedule: Schedule, num_states: int, *, rates: ArrayLike | str = "uniform") -> None:
        self.num_states = check_integer_at_least("num_states", num_states, 2, "It counts the states of a coordinate.")
        self.schedule = schedule
        if isinstance(rates, str):
            if rates not in ("uniform", "absorbing"):
                raise ValueError(
                    expected("rates 'uniform', 'absorbing' or probabilities", repr(rates), "Choose one of these.")
                )
            is_mask = np.arange(num_states) == num_states - 1
            rates = np.full(num_states, 1 / num_states) if rates == "uniform" else is_mask.astype(float)
        self.rates = rates
        if not is_concrete((rates, schedule.alpha_bar)):
            return
        values = np.asarray(rates, np.float64)
        if values.shape != (num_states,) or not (values >= 0).all() or not np.isclose(values.sum(), 1, atol=1e-5):
            raise ValueError(
                expected(f"rates of shape ({num_states},), >= 0 with sum 1", rates, "Take the data's frequencies.")
            )
        if (values == 0).any() and np.asarray(schedule.alpha_bar)[-1] > 0:
            raise ValueError(
                expected(
                    "b_T = 1 for rates that are 0 somewhere",
                    f"abar_T = {np.asarray(schedule.alpha_bar)[-1]:.3g}",
                    "Use schedules.constant_fraction: a state of rate 0 that is left at T has no density under pi.",
                )
            )

    @property
    def element_support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self._size - 1)

    @property
    def num_outputs(self) -> int:
        return 1

    def at_levels(self, levels: Sequence[int]) -> "CategoricalKernel":
        return self._with_schedule(self.schedule.at_levels(levels))

    def check_data(self, name: str, value: ArrayLike) -> None:
        if not is_concrete(value):
            return
        array = np.asarray(value)
        bad = ~np.isin(array, np.arange(self._size))
        if bad.any():
            first = first_index(bad)
            raise ValueError(
                expected(
                    f"states 0 to {self._size - 1} for {name}",
                    f"{array[first]} at index {first} ({int(bad.sum())} of {bad.size} are none)",
                    "Number the classes from 0, or raise num_states.",
                )
            )

    def encode(self, x_t: Array) -> Array:
        return self._one_hot(x_t)

    def stationary(self, shape: Shape) -> CategoricalLogits:
        return _from_weights(jnp.broadcast_to(self._rates(), (*shape, self._size)))

    def step(self, x_previous: ArrayLike, t: ArrayLike) -> CategoricalLogits:
        beta = self._at(self.schedule.beta, t)
        return _from_weights(self._kept(x_previous, 1 - beta, beta))

    def marginal(self, x_0: ArrayLike, t: ArrayLike) -> CategoricalLogits:
        return _from_weights(self._kept(x_0, *self._marginal_terms(t)))

    def bridge(self, x_t: ArrayLike, x_0: ArrayLike, t: ArrayLike) -> CategoricalLogits:
        before = self._kept(x_0, *self._marginal_terms(jnp.asarray(t) - 1))
        return _from_weights(self._step_likelihood(x_t, t) * before)

    def reverse(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> CategoricalLogits:
        signal, noise = self._marginal_terms(t)
        seen = self._one_hot(x_t)
        rate = (seen * self._rates()).sum(-1, keepdims=True)
        # q(x^t | x^0 = k); where it is 0, k is no cause of x^t.
        likelihood = signal[..., None] * seen + noise[..., None] * rate
        log_weight = jnp.where(likelihood > 0, jax.nn.log_softmax(output, axis=-1) - safe_log(likelihood), -jnp.inf)
        log_total = jax.nn.logsumexp(log_weight, axis=-1, keepdims=True)
        signal, noise = (values[..., None] for values in self._marginal_terms(jnp.asarray(t) - 1))
        smallest = _smallest(log_weight.dtype)
        before = jnp.logaddexp(
            safe_log(signal, at_zero=smallest) + jnp.maximum(log_weight, smallest),
            safe_log(noise * self._rates(), at_zero=smallest) + log_total,
        )
        return _categorical(before + safe_log(self._step_likelihood(x_t, t), at_zero=smallest))

    def denoised(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> Array:
        raise TypeError(
            expected("a kernel whose states are numbers", "CategoricalKernel", "Classes have no mean: use the output.")
        )

    def tilt(self, step: Any, slope: ArrayLike) -> CategoricalLogits:
        return self.multiplied(step, jnp.asarray(slope)[..., None] * jnp.arange(self._size))

    def kl(self, bridge: Any, reverse: Any) -> Array:
        return (jnp.exp(bridge.logits) * (bridge.logits - reverse.logits)).sum(-1)

    def state_probabilities(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> Array:
        signal, noise = (values[..., None] for values in self._marginal_terms(t))
        seen = self._one_hot(x_t)
        likelihood = signal * seen + noise * (seen * self._rates()).sum(-1, keepdims=True)
        return jax.nn.softmax(jnp.where(likelihood > 0, output, -jnp.inf), axis=-1)

    def reweighted(self, output: PyTree, x_t: ArrayLike, t: ArrayLike, log_factor: Array) -> CategoricalLogits:
        return self.reverse(output + log_factor, x_t, t)

    def multiplied(self, step: Any, log_factor: Array) -> CategoricalLogits:
        # An infinite factor decides; softmax would make NaN of it.
        limit = jnp.sqrt(jnp.finfo(step.logits.dtype).max)
        return _categorical(step.logits + jnp.clip(log_factor, -limit, limit))

    @property
    def _size(self) -> int:
        return int(self.num_states or 0)

    def _rates(self) -> Array:
        return jnp.asarray(self.rates, float)

    def _one_hot(self, x: ArrayLike) -> Array:
        return jax.nn.one_hot(jnp.asarray(x).astype(int), self._size, dtype=jnp.result_type(float))

    def _kept(self, x: ArrayLike, kept: Array, forgotten: Array) -> Array:
        """Probabilities of a coordinate that is kept with probability ``kept`` and else drawn anew, (..., K)."""
        return kept[..., None] * self._one_hot(x) + forgotten[..., None] * self._rates()

    def _step_likelihood(self, x_t: ArrayLike, t: ArrayLike) -> Array:
        """q(x^t | x^{t-1} = j) for every j, (..., K)."""
        beta, seen = self._at(self.schedule.beta, t)[..., None], self._one_hot(x_t)
        return (1 - beta) * seen + beta * (seen * self._rates()).sum(-1, keepdims=True)

    def _marginal_terms(self, t: ArrayLike) -> tuple[Array, Array]:
        return self._at(self.schedule.alpha_bar, t), self._at(self.schedule.noise_variance, t)

    @staticmethod
    def _at(values: ArrayLike, t: ArrayLike) -> Array:
        return jnp.asarray(values, float)[jnp.asarray(t)]


def _categorical(logits: Array) -> CategoricalLogits:
    return CategoricalLogits(logits, validate_args=False)


def _from_weights(weights: Array) -> CategoricalLogits:
    return _categorical(safe_log(weights, at_zero=_smallest(weights.dtype)))


def _smallest(dtype: Any) -> float:
    return float(np.log(np.finfo(dtype).tiny))
