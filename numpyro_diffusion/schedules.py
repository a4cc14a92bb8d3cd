r"""Noise schedules: how much of the data each step of the forward chain erases.

Step t = 1..T keeps a fraction 1 - b_t of the signal's power and adds noise of variance b_t, so that

    abar_t = prod_{s <= t} (1 - b_s)        what is left of the signal's power (Eq. 3, unrolled)
    v_t    = 1 - abar_t                     the variance of the noise
    lambda_t = log(abar_t / v_t)            log signal-to-noise ratio, falling in t.

All three are kept, because each loses digits when computed from another: v_1 = 1 - abar_1 has none
left in float32 when b_1 = 1e-8, and log abar_T is -inf when b_T = 1. From b alone, v follows
the recursion v_t = (1 - b_t) v_{t-1} + b_t, a sum of positive terms, which is exact to rounding.

Index 0 is the data: beta[0] = 0, alpha_bar[0] = 1, noise_variance[0] = 0. Nothing here assumes a kernel;
the names and the use of abar are those of the Gaussian chain, and the binomial chain shares them.

References: Sohl-Dickstein et al. 2015, Section 2.4.1; Ho et al. 2020 (linear); Nichol and Dhariwal 2021 (cosine).
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._checks import check_integer_at_least, expected, is_concrete
from ._pytree import register_pytree
from ._typing import Array, ArrayLike

__all__ = [
    "Schedule",
    "check_signal_erased",
    "constant_fraction",
    "cosine",
    "from_sigmas",
    "learned",
    "learned_initial",
    "linear",
    "log_snr",
]

_STEPS_CURE = "Pass the number of diffusion steps T, for example 100."


@register_pytree(data=("beta", "alpha_bar", "noise_variance", "first_ratio"), static=("num_steps",))
class Schedule:
    """b_t, abar_t and 1 - abar_t for t = 0..T, a pytree of three arrays.

    Attributes:
        beta: b_t, shape (T + 1,), with ``beta[0] == 0`` and the others in (0, 1].
        alpha_bar: abar_t, shape (T + 1,), from 1 down.
        noise_variance: 1 - abar_t without cancellation, shape (T + 1,), from 0 up.
        num_steps: T.
        first_ratio: of some levels of a longer schedule, that schedule's own v_1 / v_2, shape (); else None.
    """

    beta: ArrayLike
    alpha_bar: ArrayLike
    noise_variance: ArrayLike
    num_steps: int
    first_ratio: ArrayLike | None = None

    def __init__(
        self,
        beta: ArrayLike,
        alpha_bar: ArrayLike,
        noise_variance: ArrayLike,
        *,
        first_ratio: ArrayLike | None = None,
    ) -> None:
        self.beta, self.alpha_bar, self.noise_variance = beta, alpha_bar, noise_variance
        self.num_steps = jnp.shape(beta)[0] - 1
        self.first_ratio = first_ratio

    @classmethod
    def from_beta(cls, beta: ArrayLike | Sequence[float]) -> "Schedule":
        """The schedule of given b_1..b_T, concrete or traced.

        Args:
            beta: shape (T,), each in (0, 1].

        Raises:
            ValueError: for a wrong shape, T < 1, or b outside (0, 1] or NaN.

        >>> Schedule.from_beta([0.5, 1.0]).alpha_bar
        array([1. , 0.5, 0. ])
        """
        if is_concrete(beta):
            return cls._from_concrete_beta(np.asarray(beta, np.float64))
        traced = jnp.asarray(beta)
        _check_beta_shape(traced.shape)

        def step(carry: tuple[Array, Array], b: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            kept, noise = (1 - b) * carry[0], (1 - b) * carry[1] + b
            return (kept, noise), (kept, noise)

        start = (jnp.ones((), traced.dtype), jnp.zeros((), traced.dtype))
        _, (alpha_bar, noise_variance) = jax.lax.scan(step, start, traced)
        zero, one = jnp.zeros((1,), traced.dtype), jnp.ones((1,), traced.dtype)
        return cls(
            jnp.concatenate([zero, traced]),
            jnp.concatenate([one, alpha_bar]),
            jnp.concatenate([zero, noise_variance]),
        )

    @classmethod
    def _from_concrete_beta(cls, beta: np.ndarray) -> "Schedule":
        """The recursions in float64 on the host: products and sums of positive terms, so rounding is all they lose."""
        _check_beta_shape(beta.shape)
        bad = ~((beta > 0) & (beta <= 1))
        if bad.any():
            t = int(np.argmax(bad))
            raise ValueError(
                expected(
                    "every b_t in (0, 1]",
                    f"b_{t + 1} = {beta[t]}",
                    "b_t is the fraction of variance replaced by noise at step t.",
                )
            )
        noise_variance = np.zeros(len(beta) + 1)
        for t, b in enumerate(beta, start=1):
            noise_variance[t] = (1.0 - b) * noise_variance[t - 1] + b
        alpha_bar = np.concatenate([[1.0], np.cumprod(1.0 - beta)])
        return cls(np.concatenate([[0.0], beta]), alpha_bar, noise_variance)

    def at_levels(self, levels: Sequence[int]) -> "Schedule":
        """The schedule of the chain that visits these levels of noise alone: step k goes from levels[k-1] to levels[k].

        abar and v are those of the levels; b_k = 1 - prod (1 - b_t) over the steps t that it joins.

        Args:
            levels: rising integers out of 1..T, the last of them T.

        >>> constant_fraction(4).at_levels([1, 4]).alpha_bar
        array([1.  , 0.75, 0.  ])
        """
        index = np.asarray((0, *levels))
        if isinstance(self.beta, np.ndarray):
            with np.errstate(divide="ignore"):  # b_T = 1
                log_kept: Any = np.add.reduceat(np.log1p(-self.beta[1:]), index[:-1])
            beta: ArrayLike = np.concatenate([[0.0], -np.expm1(log_kept)])
        else:
            joins = np.repeat(np.arange(len(levels)), np.diff(index))
            log_kept = jax.ops.segment_sum(jnp.log1p(-jnp.asarray(self.beta)[1:]), joins, len(levels))
            beta = jnp.concatenate([jnp.zeros((1,), log_kept.dtype), -jnp.expm1(log_kept)])
        power, noise = self.alpha_bar[index], self.noise_variance[index]  # type: ignore[index]
        return Schedule(beta, power, noise, first_ratio=self.ratio_at_end if levels[0] == 1 else None)

    @property
    def ratio_at_end(self) -> ArrayLike:
        """v_1 / v_2, or that of the longer schedule whose levels these are; 1/2 when T = 1."""
        if self.first_ratio is not None:
            return self.first_ratio
        return self.noise_variance[1] / self.noise_variance[2] if self.num_steps > 1 else np.asarray(0.5)  # type: ignore[index]

    @property
    def log_snr(self) -> Array:
        """lambda_t = log(abar_t / (1 - abar_t)), shape (T + 1,): +inf at t = 0, -inf where b_t = 1."""
        return jnp.log(jnp.asarray(self.alpha_bar)) - jnp.log(jnp.asarray(self.noise_variance))

    def __repr__(self) -> str:
        if not is_concrete(self.beta) or not isinstance(self.beta, (np.ndarray, jax.Array)):
            return f"Schedule(num_steps={self.num_steps})"
        beta, alpha_bar = np.asarray(self.beta), np.asarray(self.alpha_bar)
        ends = f"beta_1={beta[1]:.3g}, beta_T={beta[-1]:.3g}, alpha_bar_T={alpha_bar[-1]:.3g}"
        return f"Schedule(num_steps={self.num_steps}, {ends})"


def constant_fraction(num_steps: int) -> Schedule:
    """Erase a constant fraction 1/T of the signal at each step: b_t = 1 / (T - t + 1), abar_t = 1 - t/T.

    The paper's choice for the binomial chain. b_T = 1 erases all that is left.

    Args:
        num_steps: T >= 1.

    >>> constant_fraction(4).alpha_bar
    array([1.  , 0.75, 0.5 , 0.25, 0.  ])

    References: Sohl-Dickstein et al. 2015, Section 2.4.1.
    """
    num_steps = check_integer_at_least("num_steps", num_steps, 1, _STEPS_CURE)
    t = np.arange(num_steps + 1)
    beta = np.concatenate([[0.0], 1.0 / (num_steps - t[1:] + 1)])
    return Schedule(beta, (num_steps - t) / num_steps, t / num_steps)


def linear(num_steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The linear schedule in its continuous-time form, so that its ends do not depend on T.

    log abar(s) = -(beta_min s + (beta_max - beta_min) s^2 / 2) at s = t/T; with T = 1000 this is
    DDPM's b_t from 1e-4 to 0.02.

    Args:
        num_steps: T >= 1.
        beta_min: noise rate at the data, > 0.
        beta_max: noise rate at the end, >= beta_min.

    References: Ho et al. 2020; Song et al. 2021 (the continuous form).
    """
    num_steps = check_integer_at_least("num_steps", num_steps, 1, _STEPS_CURE)
    if not 0 < beta_min <= beta_max < math.inf:
        raise ValueError(
            expected("0 < beta_min <= beta_max", (beta_min, beta_max), "They are noise rates; try 0.1, 20.")
        )
    s = np.arange(num_steps + 1) / num_steps
    return _from_log_alpha_bar(-(beta_min * s + 0.5 * (beta_max - beta_min) * s**2))


def cosine(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """abar_t proportional to cos^2 of (t/T + offset) / (1 + offset) * pi/2, with b_t at most ``max_beta``.

    Args:
        num_steps: T >= 1.
        offset: keeps b_1 from being too small, >= 0.
        max_beta: the largest b_t, in (0, 1]; the source uses 0.999 because abar_T would be 0.

    References: Nichol and Dhariwal 2021, Eq. 17.
    """
    num_steps = check_integer_at_least("num_steps", num_steps, 1, _STEPS_CURE)
    if not (0 <= offset < math.inf and 0 < max_beta <= 1):
        raise ValueError(
            expected("offset >= 0 and max_beta in (0, 1]", (offset, max_beta), "The usual values are 0.008 and 0.999.")
        )
    angle = (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset) * np.pi / 2
    # 1 - cos^2(b) / cos^2(a) as a product: no cancellation when the two angles are close.
    first, second = angle[:-1], angle[1:]
    beta = np.sin(second - first) * np.sin(second + first) / np.cos(first) ** 2
    return Schedule.from_beta(np.minimum(beta, max_beta))


def log_snr(num_steps: int, sigma_min: float = 0.01, sigma_max: float = 100.0) -> Schedule:
    """Steps of equal size in log signal-to-noise ratio: the default for Gaussian chains.

    The noise-to-signal ratio sigma_t = sqrt((1 - abar_t) / abar_t) rises geometrically from
    ``sigma_min`` at t = 1 to ``sigma_max`` at t = T (with T = 1, the one step goes to ``sigma_max``).

    Args:
        num_steps: T >= 1.
        sigma_min: the smallest noise, in units of the data: the finest scale the model resolves, > 0.
        sigma_max: the largest noise, > sigma_min; take 10 to 100 times the data's standard deviation.

    >>> log_snr(3, 0.1, 10.0).log_snr[1:].round(2).tolist()
    [4.610000133514404, 0.0, -4.610000133514404]
    """
    num_steps = check_integer_at_least("num_steps", num_steps, 1, _STEPS_CURE)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            expected(
                "0 < sigma_min < sigma_max",
                (sigma_min, sigma_max),
                "They are noise-to-signal ratios of the first and the last step.",
            )
        )
    return from_sigmas(np.geomspace(sigma_max, sigma_min, num_steps)[::-1])


def from_sigmas(sigmas: ArrayLike | Sequence[float]) -> Schedule:
    """The schedule of given noise-to-signal ratios: abar_t = 1 / (1 + sigma_t^2).

    sigma_t is the noise of x^0 + sigma_t n, the variance-exploding form of the same chain:
    x^t = sqrt(abar_t) (x^0 + sigma_t n). Of a table of abar, it is sqrt(1 / abar - 1).

    Args:
        sigmas: sigma_1..sigma_T, concrete, shape (T,), in units of the data, each > 0 and above the one before.

    Raises:
        ValueError: for a wrong shape, or a table that does not rise from above 0 to a finite number.

    >>> from_sigmas([0.5, 1.0, 2.0]).alpha_bar
    array([1. , 0.8, 0.5, 0.2])

    References: Song et al. 2021, Section 3.4; Karras et al. 2022, Section 2.
    """
    sigma = np.asarray(sigmas, np.float64)
    if sigma.ndim != 1 or len(sigma) < 1:
        raise ValueError(
            expected("sigmas of shape (T,) with T >= 1", f"shape {sigma.shape}", "Pass sigma_1..sigma_T as one vector.")
        )
    rises = np.isfinite(sigma) & (np.diff(sigma, prepend=0.0) > 0)
    if not rises.all():
        t = int(np.argmin(rises))
        before = f", after sigma_{t} = {sigma[t - 1]}" if t else ""
        raise ValueError(
            expected(
                "sigmas that rise from above 0 to a finite number",
                f"sigma_{t + 1} = {sigma[t]}{before}",
                "Sigma_1 is the smallest noise, not 0; turn a table that falls with sigmas[::-1].",
            )
        )
    return _from_log_alpha_bar(np.concatenate([[0.0], -np.log1p(sigma**2)]))


def learned_initial(num_steps: int, sigma_max: float = 100.0, *, beta_1: float = 1e-3) -> np.ndarray:
    """Where to start :func:`learned`: the raw vector of the schedule even in log SNR.

    Args:
        num_steps: T >= 1.
        sigma_max: noise-to-signal ratio of the last step.
        beta_1: the fixed first step, in (0, 1).

    Returns:
        The raw steps, shape (T - 1,), float64.
    """
    num_steps = check_integer_at_least("num_steps", num_steps, 1, _STEPS_CURE)
    first, last = math.log1p(-beta_1) - math.log(beta_1), -2 * math.log(sigma_max)
    if last >= first:
        raise ValueError(
            expected("sigma_max above the first step's noise", sigma_max, f"Take more than {math.exp(-first / 2):.3g}.")
        )
    gap = (first - last) / max(num_steps - 1, 1)
    return np.full(num_steps - 1, math.log(math.expm1(gap)) if gap < 30 else gap)


def learned(raw: ArrayLike, *, beta_1: float = 1e-3) -> Schedule:
    """A schedule from unconstrained numbers, differentiable in them, b_1 fixed.

    lambda_1 = logit(1 - b_1) and lambda_{t+1} = lambda_t - softplus(raw_t): the signal-to-noise ratio falls
    at every step, so every b_t is in (0, 1), whatever ``raw`` is. b_1 is not learned: it is the smallest
    scale the model resolves, and the bound on noise-free data has no maximum in it.

    Args:
        raw: unconstrained steps, shape (T - 1,).
        beta_1: the first step, in (0, 1).

    Raises:
        ValueError: if ``raw`` is not a vector or ``beta_1`` is outside (0, 1).

    References: Sohl-Dickstein et al. 2015, Section 2.4.1 and Appendix B.2.
    """
    if jnp.ndim(raw) != 1:
        raise ValueError(expected("raw of shape (T - 1,)", f"shape {jnp.shape(raw)}", "Start from learned_initial(T)."))
    if not 0 < beta_1 < 1:
        raise ValueError(expected("beta_1 in (0, 1)", beta_1, "It is the fixed first step; 1e-3 is the authors'."))
    raw = jnp.asarray(raw)
    first = jnp.asarray([math.log1p(-beta_1) - math.log(beta_1)], raw.dtype)
    log_snr_t = jnp.concatenate([first, first - jnp.cumsum(jax.nn.softplus(raw))])
    log_alpha_bar = jnp.concatenate([jnp.zeros((1,), raw.dtype), jax.nn.log_sigmoid(log_snr_t)])
    zero, one = jnp.zeros((1,), raw.dtype), jnp.ones((1,), raw.dtype)
    # Where log abar_T is deep in the tail, differences of it stay exact: it falls linearly in lambda there.
    return Schedule(
        jnp.concatenate([zero, -jnp.expm1(jnp.diff(log_alpha_bar))]),
        jnp.concatenate([one, jax.nn.sigmoid(log_snr_t)]),
        jnp.concatenate([zero, jax.nn.sigmoid(-log_snr_t)]),
    )


def check_signal_erased(schedule: Schedule, data_scale: float, *, tolerance: float = 0.1) -> float:
    """Warn when the last step still shows the data: sqrt(abar_T) times the data's scale should be small.

    The reverse chain starts from pure noise. If the forward chain does not end there, no number of
    steps repairs the difference; it costs about (sqrt(abar_T) scale)^2 / 2 nats per coordinate.

    Args:
        schedule: a concrete schedule.
        data_scale: the data's root mean square, in the data's units.
        tolerance: warn above this; 0.1 is 0.005 nats per coordinate.

    Returns:
        sqrt(abar_T) * data_scale.
    """
    remaining = math.sqrt(float(schedule.alpha_bar[-1])) * float(data_scale)  # type: ignore[index]
    if not remaining <= tolerance:
        warnings.warn(
            expected(
                f"sqrt(abar_T) * data_scale <= {tolerance}",
                f"{remaining:.3g}",
                "Raise the schedule's last noise level (sigma_max, beta_max) or scale the data down.",
            ),
            stacklevel=2,
        )
    return remaining


def _check_beta_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(expected("beta of shape (T,) with T >= 1", f"shape {shape}", "Pass b_1..b_T as one vector."))


def _from_log_alpha_bar(log_alpha_bar: np.ndarray) -> Schedule:
    """The schedule whose log abar_t, t = 0..T, is given in float64."""
    beta = np.concatenate([[0.0], -np.expm1(np.diff(log_alpha_bar))])
    return Schedule(beta, np.exp(log_alpha_bar), -np.expm1(log_alpha_bar))
