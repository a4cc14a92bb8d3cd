r"""The Gaussian kernel: add noise, shrink the signal.

With b_t, abar_t and v_t = 1 - abar_t of the schedule:

    pi                         N(0, 1)
    q(x^t | x^{t-1})           N(sqrt(1 - b_t) x^{t-1}, b_t)
    q(x^t | x^0)               N(sqrt(abar_t) x^0, v_t)
    q(x^{t-1} | x^t, x^0)      N(c_t x^0 + d_t x^t, b_t v_{t-1} / v_t),
                               c_t = sqrt(abar_{t-1}) b_t / v_t,   d_t = sqrt(1 - b_t) v_{t-1} / v_t
    p(x^{t-1} | x^t)           N(c_t x0hat + d_t x^t, s_t^2),   x0hat the network's estimate of E[x^0 | x^t]

What the network returns is one of ``parameterization``, all turned into x0hat in one place:

    "v"       sqrt(abar_t) eps - sqrt(v_t) x^0             x0hat = sqrt(abar_t) x^t - sqrt(v_t) out
    "noise"   eps, where x^t = sqrt(abar_t) x^0 + sqrt(v_t) eps
    "score"   the gradient of log q(x^t) = -E[eps | x^t] / sqrt(v_t)
    "x0"      x^0 itself
    "paper"   (z_mu, z_Sigma) of Eq. 64-65: s_t^2 = sigmoid(z_Sigma + logit b_t),
              mean = (x^t - z_mu)(1 - s_t^2) + z_mu

and s_t^2 is, by ``variance``:

    "learned"    log-linear between the lower and the upper value, by the sigmoid of a second output
    "lower"      b_t v_{t-1} / v_t, the bridge's: right for data at a single point
    "upper"      lower + c_t^2 r_t^2, with r_t^2 = S^2 v_t / (abar_t S^2 + v_t): right for Gaussian data of
                 standard deviation S = ``data_scale``; with S = 1 it is b_t
    "denoiser"   lower + c_t^2 V, where the second output is V = Var[x^0 | x^t] > 0: moment matching

By the law of total variance the first is a true lower bound on the variance of q(x^{t-1} | x^t), and the
third is the largest that the average variance of data with this scale can be. At t = 1 the lower value would be 0
and p(x^0 | x^1) no density; it is replaced by the upper value times v_1 / v_2, as if the noise levels went
one more step down in the same ratio (1/2 when T = 1).

Not assumed: unit variance or zero mean of the data (only the schedule's end must drown them).

References: Sohl-Dickstein et al. 2015, Table App. 1, Eq. 64-65; Ho et al. 2020 (noise); Salimans and Ho 2022 (v);
Nichol and Dhariwal 2021 (interpolated log variance); Bao et al. 2022 (optimal variance).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._checks import check_choice, check_finite, check_floating, expected, is_concrete
from .._numerics import safe_log, safe_sqrt
from .._pytree import register_pytree
from .._typing import Array, ArrayLike, PyTree, Shape
from ..schedules import Schedule
from .base import Kernel

__all__ = ["GaussianKernel"]

Parameterization = Literal["v", "noise", "x0", "score", "paper"]
Variance = Literal["learned", "lower", "upper", "denoiser"]

# A sigmoid reaches 0 in float32, a variance must not: the paper's z_Sigma is kept softly within +-10, that is the
# variance within a factor exp(10) of the forward kernel's. Near 0 this is the identity.
_PAPER_LIMIT = 10.0


@register_pytree(data=("schedule",), static=("parameterization", "variance", "data_scale"))
class GaussianKernel(Kernel):
    """Gaussian diffusion of real numbers.

    Args:
        schedule: b_1..b_T, from :mod:`numpyro_diffusion.schedules`.
        parameterization: what the network's first output means: ``"v"``, ``"noise"``, ``"x0"``, ``"score"`` or
            ``"paper"``.
        variance: the reverse variance: ``"learned"``, ``"lower"``, ``"upper"`` or ``"denoiser"``; ``"paper"``
            has its own, learned too.
        data_scale: S, the data's standard deviation per coordinate, > 0; enters the upper variance.

    Raises:
        ValueError: for an unknown name, or for ``"noise"`` and ``"score"`` when b_T = 1: pure noise says
            nothing about x^0.

    >>> from numpyro_diffusion import schedules
    >>> kernel = GaussianKernel(schedules.log_snr(10))
    >>> kernel.marginal(2.0, 10).variance.round(3)
    Array(1., dtype=float32)
    """

    is_discrete = False
    element_support = constraints.real

    def __init__(
        self,
        schedule: Schedule,
        *,
        parameterization: Parameterization = "v",
        variance: Variance = "learned",
        data_scale: float = 1.0,
    ) -> None:
        check_choice("parameterization", parameterization, Parameterization)
        check_choice("variance", variance, Variance)
        if parameterization == "paper" and variance != "learned":
            raise ValueError(
                expected("variance='learned' with parameterization='paper'", repr(variance), "Eq. 64-65 learn both.")
            )
        if not 0 < data_scale < math.inf:
            raise ValueError(expected("data_scale > 0", data_scale, "Pass the data's standard deviation."))
        if (
            parameterization in ("noise", "score")
            and is_concrete(schedule.alpha_bar)
            and np.asarray(schedule.alpha_bar)[-1] == 0
        ):
            raise ValueError(
                expected(
                    f"b_T < 1 for parameterization={parameterization!r}",
                    "b_T = 1",
                    "Use 'v' or 'x0', which are defined where no signal is left, or another schedule.",
                )
            )
        self.schedule = schedule
        self.parameterization = parameterization
        self.variance = variance
        self.data_scale = float(data_scale)

    @property
    def num_outputs(self) -> int:
        return 2 if self.variance in ("learned", "denoiser") else 1

    def at_levels(self, levels: Sequence[int]) -> "GaussianKernel":
        if self.parameterization == "paper":
            cure = "Its outputs are those of its own steps; train another network with fewer steps."
            raise TypeError(
                expected("a network of x^0, noise, score or v to respace", "parameterization='paper'", cure)
            )
        return self._with_schedule(self.schedule.at_levels(levels))

    def check_data(self, name: str, value: ArrayLike) -> None:
        check_floating(name, value, "Convert it with .astype(jnp.float32).")
        check_finite(name, value)

    def stationary(self, shape: Shape) -> dist.Normal:
        return dist.Normal(jnp.zeros(shape), jnp.ones(shape), validate_args=False)

    def step(self, x_previous: ArrayLike, t: ArrayLike) -> dist.Normal:
        beta = self._at(self.schedule.beta, t, x_previous)
        return _normal(safe_sqrt(1 - beta) * x_previous, safe_sqrt(beta))

    def marginal(self, x_0: ArrayLike, t: ArrayLike) -> dist.Normal:
        signal, noise = self.signal_and_noise(t, x_0)
        return _normal(signal * x_0, safe_sqrt(noise))

    def bridge(self, x_t: ArrayLike, x_0: ArrayLike, t: ArrayLike) -> dist.Normal:
        return _normal(self._bridge_mean(x_t, x_0, t), safe_sqrt(self.bridge_terms(t, x_t)[1]))

    def reverse(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> dist.Normal:
        if self.parameterization == "paper":
            return self._paper_reverse(output, x_t, t)
        first, second = output if self.num_outputs == 2 else (output, jnp.zeros(()))
        mean = self._bridge_mean(x_t, self._to_x0(first, x_t, t), t)
        if self.variance == "denoiser":
            gain, lower = self.bridge_terms(t, x_t)
            return _normal(mean, jnp.sqrt(lower + gain**2 * second))
        lower, upper = self.variance_bounds(t, x_t)
        if self.variance == "learned":
            log_lower, log_upper = jnp.log(lower), jnp.log(upper)
            return _normal(mean, jnp.exp(0.5 * (log_lower + jax.nn.sigmoid(second) * (log_upper - log_lower))))
        return _normal(mean, jnp.sqrt(lower if self.variance == "lower" else upper))

    def denoised(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> ArrayLike:
        if self.parameterization == "paper":
            # The estimate of x^0 under which the bridge has the reverse step's mean.
            mean = self._paper_reverse(output, x_t, t).loc
            return (mean - self._bridge_mean(x_t, jnp.zeros_like(x_t), t)) / self.bridge_terms(t, x_t)[0]
        return self._to_x0(output[0] if self.num_outputs == 2 else output, x_t, t)

    def tilt(self, step: Any, slope: ArrayLike) -> dist.Normal:
        return _normal(step.loc + step.scale**2 * slope, step.scale)

    def kl(self, bridge: Any, reverse: Any) -> Array:
        # expm1(r) - r keeps the digits that var_ratio - 1 - log(var_ratio) loses when the two variances are close.
        log_ratio = 2 * (safe_log(bridge.scale, at_zero=0.0) - jnp.log(reverse.scale))
        shift = (bridge.loc - reverse.loc) / reverse.scale
        return 0.5 * (jnp.expm1(log_ratio) - log_ratio + shift**2)

    def from_noise(self, step: Any, noise: ArrayLike) -> Array:
        return step.loc + step.scale * noise

    def signal_and_noise(self, t: ArrayLike, like: ArrayLike) -> tuple[Array, Array]:
        power, noise = (self._at(values, t, like) for values in (self.schedule.alpha_bar, self.schedule.noise_variance))
        return safe_sqrt(power), noise

    def bridge_terms(self, t: ArrayLike, like: ArrayLike) -> tuple[Array, Array]:
        before = jnp.asarray(t) - 1
        share = self._at(self.schedule.beta, t, like) / self._at(self.schedule.noise_variance, t, like)
        signal, noise = self.signal_and_noise(before, like)
        return signal * share, noise * share

    def variance_bounds(self, t: ArrayLike, x_t: ArrayLike) -> tuple[Array, Array]:
        """The lower and the upper value of the reverse variance, both > 0.

        Args:
            t: step, 1..T.
            x_t: an array whose dtype the result takes.

        Returns:
            Two arrays of t's shape.
        """
        gain, bridge = self.bridge_terms(t, x_t)
        upper = bridge + gain**2 * self.denoised_variance(t, jnp.asarray(self.data_scale**2, bridge.dtype))
        extrapolated = upper * jnp.asarray(self.schedule.ratio_at_end, upper.dtype)
        return jnp.where(jnp.asarray(t) == 1, extrapolated, bridge), upper

    def _to_x0(self, output: ArrayLike, x_t: ArrayLike, t: ArrayLike) -> ArrayLike:
        """The estimate of x^0 that an output stands for: the one place where parameterisations are converted."""
        if self.parameterization == "x0":
            return output
        signal, noise = self.signal_and_noise(t, x_t)
        if self.parameterization == "v":
            return signal * x_t - safe_sqrt(noise) * output
        if self.parameterization == "noise":
            return (x_t - safe_sqrt(noise) * output) / signal
        return (x_t + noise * output) / signal

    def _paper_reverse(self, output: PyTree, x_t: ArrayLike, t: ArrayLike) -> dist.Normal:
        """Eq. 64-65, with sigmoid(z + logit b) written so that b = 1 needs no infinite logit."""
        z_mean, z_variance = output
        z_variance = _PAPER_LIMIT * jnp.tanh(z_variance / _PAPER_LIMIT)
        beta = self._at(self.schedule.beta, t, x_t)
        raised, lowered = beta * jax.nn.sigmoid(z_variance), (1 - beta) * jax.nn.sigmoid(-z_variance)
        variance = raised / (raised + lowered)
        return _normal((x_t - z_mean) * (1 - variance) + z_mean, jnp.sqrt(variance))

    def _bridge_mean(self, x_t: ArrayLike, x_0: ArrayLike, t: ArrayLike) -> Array:
        kept = safe_sqrt(1 - self._at(self.schedule.beta, t, x_t))
        before, noise = (self._at(self.schedule.noise_variance, u, x_t) for u in (jnp.asarray(t) - 1, t))
        return self.bridge_terms(t, x_t)[0] * x_0 + kept * before / noise * x_t

    @staticmethod
    def _at(values: ArrayLike, t: ArrayLike, like: ArrayLike) -> Array:
        """The schedule's values at t, in the dtype of the state."""
        dtype = jnp.result_type(like)
        return jnp.asarray(values, dtype if jnp.issubdtype(dtype, jnp.floating) else float)[jnp.asarray(t)]


def _normal(loc: ArrayLike, scale: ArrayLike) -> dist.Normal:
    return dist.Normal(loc, scale, validate_args=False)
