r"""Twists: what a particle at level t already knows of the observations.

A twist psi_t(x^t) > 0 approximates p(y | x^t). Sequential Monte Carlo on the targets p(x^{t:T}) psi_t(x^t), with
psi_0 = r, is exact whatever the twist (unbiased for the evidence at every N); its variance is the twist's. The weight
of a step from x^t to x^{t-1}, proposed by q, is

    w = psi_{t-1}(x^{t-1}) p(x^{t-1} | x^t) / (psi_t(x^t) q(x^{t-1} | x^t))

With the denoised x0hat(x^t) = E[x^0 | x^t], the twists here are

    Tempered        psi_t = r(x0hat)^lambda_t,   lambda_t = 1 / (1 + r_t^2 h),
                    r_t^2 = S^2 v_t / (abar_t S^2 + v_t), S^2 the variance of prior draws,
                    h the largest curvature of -log r at prior draws;
                    q = p with its mean moved by its variance times the gradient of log psi_t

so that psi_t is never sharper than what x^t can know. An overconfident twist (lambda = 1) fails silently: only the
smallest effective size over levels and the spread over islands show it. Bits have no gradient: at x = x0hat rounded,

    log psi_t = log r(x) + sum_i log E[exp((b_i - x_i) slope_i)],   b_i ~ p(x^0_i | x^t)

with slope_i the change of log r when bit i goes from 0 to 1, and q is the reverse step with the law of x^0 multiplied
by exp(slope). Both are exact when r factorises over bits and the network gives the law of x^0. When r couples bits they
are too sure of themselves: two flips that each help may together hurt, and states that the slopes exclude would come
up seldom, with a weight that outweighs all others. Let e be the mean error in nats when log r at one draw of the prior
is foretold from another by its slopes. Then r is tempered by 1 / (1 + e), psi_t is mixed with the average of r over the
prior, (1 - d) psi_t + d E[r] with d = (1 - exp(-e)) / 2, and particles move by p with the probability of the second
part, which bounds their weights.

References: Guarniero, Johansen and Lee 2017 (twisted filters); Wu et al. 2023 (twisted diffusion sampler).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ..._checks import check_integer_at_least, expected
from ..._numerics import expand_right
from ..._typing import Array
from ..._weights import log_mean_exp
from ...kernels import BernoulliKernel
from ...model.split import SplitModel
from ..steps import MixedStep, Step, TiltedStep
from ..target import States, Target

__all__ = ["Custom", "NoTwist", "Tempered", "Twist", "prior_power"]

_SLOPE_LIMIT = 30.0  # nats: a bit is never forbidden outright by an estimate


@runtime_checkable
class Twist(Protocol):
    """A look ahead. Hashable; what it computes from data is in ``constants``.

    Attributes:
        num_prior_draws: how many draws of the prior ``prepare`` wants; 0 for none.

    >>> all(isinstance(twist, Twist) for twist in (NoTwist(), Tempered()))
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

    def num_passes_back(self, split: SplitModel) -> int:
        """Passes back through the networks at each step."""


@dataclasses.dataclass(frozen=True)
class NoTwist:
    """psi = 1: the bootstrap filter. Particles move by the prior, and meet the data at the end.

    >>> NoTwist() == NoTwist()  # TwistedSMC(model, twist=NoTwist()), or twist="none"
    True
    """

    num_prior_draws = 0

    def num_passes_back(self, split: SplitModel) -> int:
        return 0

    def prepare(self, target: Target, prior_draws: States) -> None:
        return None

    def look(self, target: Target, constants: Any, x: States, step: Array) -> tuple[Array, Step]:
        laws = {name: target.network(name, x[name], step)[1] for name in x}
        return jnp.zeros(_num_particles(x) + target.element_shape), TiltedStep(laws, {})


class _TemperedConstants(NamedTuple):
    power: dict[str, Array]  # S^2, () each
    curvature: Array  # h, (E...)
    coupling: Array  # e, (E...)
    log_mean: Array  # log E[r], (E...)


@dataclasses.dataclass(frozen=True)
class Tempered:
    """The generic twist: any differentiable likelihood, any number of sites, bits too.

    Args:
        num_prior_draws: of the prior, for its variance and the largest curvature.
        num_iterations: of the power method for the curvature.

    >>> Tempered(num_prior_draws=256)  # TwistedSMC(model, twist=Tempered(num_prior_draws=256))
    Tempered(num_prior_draws=256, num_iterations=8)
    """

    num_prior_draws: int = 64
    num_iterations: int = 8

    def __post_init__(self) -> None:
        check_integer_at_least("num_iterations", self.num_iterations, 1, "Ten or so find the largest curvature.")
        check_integer_at_least("num_prior_draws", self.num_prior_draws, 2, "A variance needs some.")

    def num_passes_back(self, split: SplitModel) -> int:
        return 0 if all(site.is_discrete for site in split.sites) else 1

    def prepare(self, target: Target, prior_draws: States) -> _TemperedConstants:
        power = {name: prior_power(target, prior_draws, name) for name in prior_draws}
        curvature = _largest_curvature(target, prior_draws, self.num_iterations)
        return _TemperedConstants(power, curvature, *_coupling(target, prior_draws))

    def look(self, target: Target, constants: _TemperedConstants, x: States, step: Array) -> tuple[Array, Step]:
        smooth = {name: value for name, value in x.items() if not target.is_discrete(name)}
        radius = [denoised_variance(target, name, step, constants.power[name]) for name in smooth]
        uncertain = jnp.max(jnp.stack(radius)) * constants.curvature if radius else 0.0
        temper = 1 / (1 + uncertain + constants.coupling)

        def log_psi(smooth: States) -> tuple[Array, Any]:
            outputs, laws, x_0 = {}, {}, {}
            for name, x_t in {**x, **smooth}.items():
                outputs[name], laws[name] = target.network(name, x_t, step)
                x_0[name] = (
                    jnp.round(bit_probability(target, name, outputs[name], x_t, step)).astype(int)
                    if target.is_discrete(name)
                    else target.denoised(name, outputs[name], x_t, step)
                )
            return temper * target.log_factor(x_0), (outputs, laws, x_0)

        value, pull, (outputs, laws, x_0) = jax.vjp(log_psi, smooth, has_aux=True)
        (gradient,) = pull(jnp.ones_like(value))
        tilted = {name: target.chains[name].kernel.tilt(laws[name], _finite(slope)) for name, slope in gradient.items()}
        for name in sorted(x.keys() - smooth.keys()):
            slope = expand_right(temper, x[name].ndim - 1 - temper.ndim) * bit_slopes(target, x_0, name)
            chance = bit_probability(target, name, outputs[name], x[name], step)
            value = value + target.by_element(_log_moment(chance, x_0[name], slope))
            tilted[name] = tilted_bits(target, name, outputs[name], laws[name], x[name], step, slope)
        move = TiltedStep(laws, tilted)
        if len(smooth) == len(x):
            return value, move
        doubt = -0.5 * jnp.expm1(-constants.coupling)
        broad = jnp.where(constants.log_mean > -jnp.inf, constants.log_mean, value)
        mixed = jnp.logaddexp(jnp.log1p(-doubt) + value, jnp.log(doubt) + broad)
        trust = jnp.where(doubt > 0, jnp.exp(jnp.log1p(-doubt) + value - mixed), 1.0)
        return mixed, MixedStep(move, jnp.minimum(trust, 1.0))


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

    def num_passes_back(self, split: SplitModel) -> int:
        return 0 if all(site.is_discrete for site in split.sites) else 1

    def prepare(self, target: Target, prior_draws: States) -> None:
        return None

    def look(self, target: Target, constants: Any, x: States, step: Array) -> tuple[Array, Step]:
        smooth = {name: value for name, value in x.items() if not target.is_discrete(name)}
        log_r = lambda x_0: target.split.log_factor(x_0, target.others).elements  # noqa: E731

        def log_psi(smooth: States) -> tuple[Array, Any]:
            states, laws, x_0 = {**x, **smooth}, {}, {}
            for name, x_t in states.items():
                output, laws[name] = target.network(name, x_t, step)
                x_0[name] = (
                    bit_probability(target, name, output, x_t, step)
                    if target.is_discrete(name)
                    else target.denoised(name, output, x_t, step)
                )
            value = jax.vmap(lambda x_t, x_0: self.function(x_t, step, x_0, log_r))(states, x_0)
            wanted = _num_particles(x) + target.element_shape
            if jnp.shape(value) != wanted:
                raise ValueError(
                    expected(
                        f"a twist of shape {target.element_shape} for one particle",
                        f"shape {jnp.shape(value)[1:]}",
                        "Return log psi, one number for each element that is filtered by itself.",
                    )
                )
            return value, laws

        value, pull, laws = jax.vjp(log_psi, smooth, has_aux=True)
        (gradient,) = pull(jnp.ones_like(value))
        tilted = {name: target.chains[name].kernel.tilt(laws[name], _finite(slope)) for name, slope in gradient.items()}
        return value, TiltedStep(laws, tilted)


def prior_power(target: Target, prior_draws: States, name: str) -> Array:
    """S^2: the variance of a site's draws, averaged over coordinates."""
    return jnp.var(jnp.asarray(prior_draws[name], float), axis=0).mean()


def denoised_variance(target: Target, name: str, step: Array, power: Array) -> Array:
    """r_t^2, the variance of x^0 given x^t for Gaussian data of variance S^2."""
    schedule, t = target.chains[name].kernel.schedule, target.level(name, step)
    alpha_bar, noise = (jnp.asarray(values, float)[t] for values in (schedule.alpha_bar, schedule.noise_variance))
    return power * noise / (alpha_bar * power + noise)


def bit_probability(target: Target, name: str, output: Any, x_t: Array, step: Array) -> Array:
    """P(x^0_i = 1 | x^t): the network's, or that of independent bits for a network of x^{t-1} alone."""
    kernel: Any = target.chains[name].kernel
    if kernel.parameterization == "x0":
        return target.denoised(name, output, x_t, step)
    return _independent_bits(kernel, x_t, target.level(name, step))


def bit_slopes(target: Target, x_0: States, name: str) -> Array:
    """The change of log r when one bit of a site goes from 0 to 1, all others staying: (N, site shape...)."""
    bits = x_0[name]
    inner = bits.shape[1 + len(target.element_shape) :]
    before = target.log_factor(x_0)

    def flipped(index: Array) -> Array:
        mask = jax.nn.one_hot(index, int(np.prod(inner)), dtype=bits.dtype).reshape(inner)
        return target.log_factor({**x_0, name: bits + mask * (1 - 2 * bits)}) - before

    change = jnp.moveaxis(jax.lax.map(flipped, jnp.arange(int(np.prod(inner)))), 0, -1)
    slope = jnp.where(bits == 1, -1.0, 1.0) * change.reshape(bits.shape)
    return jnp.clip(jnp.nan_to_num(slope, nan=0.0), -_SLOPE_LIMIT, _SLOPE_LIMIT)


def _coupling(target: Target, prior_draws: States) -> tuple[Array, Array]:
    """How much r couples bits, and the log of its mean over prior draws, both (E...).

    The first is the mean error, in nats, of log r at the next draw's bits as foretold by the slopes at a draw; 0 when
    r factorises over bits. A draw of likelihood zero is as wrong as the slopes can be.
    """
    names = [name for name in prior_draws if target.is_discrete(name)]
    log_r = target.log_factor(prior_draws)
    if not names:
        return jnp.zeros(target.element_shape), log_mean_exp(log_r)
    after = {**prior_draws, **{name: jnp.roll(prior_draws[name], -1, axis=0) for name in names}}
    change = sum(
        target.by_element(bit_slopes(target, prior_draws, name) * (after[name] - prior_draws[name])) for name in names
    )
    error = jnp.abs(target.log_factor(after) - log_r - change)
    error = jnp.minimum(jnp.where(jnp.isfinite(error), error, _SLOPE_LIMIT), _SLOPE_LIMIT)
    rounding = 100 * jnp.finfo(error.dtype).eps * (1 + jnp.abs(jnp.where(jnp.isfinite(log_r), log_r, 0.0)))
    return jnp.where(error > rounding, error, 0.0).mean(0), log_mean_exp(jnp.where(jnp.isnan(log_r), -jnp.inf, log_r))


def tilted_bits(target: Target, name: str, output: Any, law: Any, x_t: Array, step: Array, slope: Array) -> Any:
    """The reverse step when the law of x^0 is multiplied by exp(slope x^0)."""
    kernel: Any = target.chains[name].kernel
    t = target.level(name, step)
    if kernel.parameterization == "x0":
        return kernel.reverse(output + slope, x_t, t)
    log_psi = [_log_moment(_independent_bits(kernel, jnp.full_like(x_t, bit), t - 1), 0, slope) for bit in (1, 0)]
    return kernel.tilt(law, log_psi[0] - log_psi[1])


def _independent_bits(kernel: BernoulliKernel, x_t: Array, t: Array) -> Array:
    schedule = kernel.schedule
    alpha_bar, noise = (jnp.asarray(values, float)[t] for values in (schedule.alpha_bar, schedule.noise_variance))
    return alpha_bar * x_t + noise * jnp.asarray(kernel.rate, float)


def _log_moment(chance: Array, x_0: Array | int, slope: Array) -> Array:
    """Log E[exp((b - x_0) slope)] for a bit b that is one with the given chance."""
    return jnp.log(chance * jnp.exp((1 - x_0) * slope) + (1 - chance) * jnp.exp(-x_0 * slope))


def _largest_curvature(target: Target, prior_draws: States, num_iterations: int) -> Array:
    """h, shape (E...): the largest eigenvalue of the Hessian of -log r over prior draws, at least 0."""
    smooth = {name: x for name, x in prior_draws.items() if not target.is_discrete(name)}
    if not smooth:
        return jnp.zeros(target.element_shape)
    energy = lambda smooth: -target.log_factor({**prior_draws, **smooth}).sum()  # noqa: E731
    slope = jax.grad(energy)

    def length(vector: States) -> Array:
        squares = [target.by_element(_finite(v) ** 2) for v in vector.values()]
        return jnp.sqrt(sum(squares[1:], squares[0]))

    def unit(vector: States) -> States:
        size = length(vector)
        size = jnp.where(size > 0, size, 1.0)
        return {n: _finite(v) / expand_right(size, v.ndim - size.ndim) for n, v in vector.items()}

    def iterate(vector: States, _: None) -> tuple[States, Array]:
        product = jax.jvp(slope, (smooth,), (vector,))[1]
        parts = [target.by_element(_finite(product[name]) * vector[name]) for name in vector]
        return unit(product), sum(parts[1:], parts[0])

    # Noise beside the gradient: a direction that the gradient misses is found too.
    keys = jax.random.split(jax.random.key(0), len(smooth))
    noise = {n: jax.random.normal(key, v.shape, v.dtype) for key, (n, v) in zip(keys, smooth.items(), strict=True)}
    direction, noise = unit(slope(smooth)), unit(noise)
    start = unit({n: direction[n] + 0.1 * noise[n] for n in smooth})
    _, found = jax.lax.scan(iterate, start, None, length=num_iterations)
    return jnp.maximum(jnp.max(found[-1], axis=0), 0.0)


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _num_particles(x: States) -> tuple[int, ...]:
    return (next(iter(x.values())).shape[0],)
