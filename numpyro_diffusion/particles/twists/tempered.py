r"""The generic twist: any differentiable likelihood, any number of sites, discrete ones too.

With the denoised x0hat(x^t) = E[x^0 | x^t],

    psi_t = r(x0hat)^lambda_t,   lambda_t = 1 / (1 + r_t^2 h),
    r_t^2 of the variance S^2 of prior draws,   h the largest curvature of -log r at prior draws,
    q = p with its mean moved by its variance times the gradient of log psi_t

so that psi_t is never sharper than what x^t can know. Discrete states have no gradient: see :mod:`.discrete`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._checks import check_integer_at_least
from ..._numerics import expand_right
from ..._typing import Array
from ..steps import MixedStep, Step, TiltedStep
from ..target import States, Target
from .base import finite, prior_power
from .discrete import coupling, likeliest, look_at_site

__all__ = ["Tempered"]


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

    def num_passes_back(self, target: Target) -> int:
        return 0 if all(target.is_discrete(name) for name in target.chains) else 1

    def prepare(self, target: Target, prior_draws: States) -> _TemperedConstants:
        power = {name: prior_power(target, prior_draws, name) for name in prior_draws}
        curvature = _largest_curvature(target, prior_draws, self.num_iterations)
        return _TemperedConstants(power, curvature, *coupling(target, prior_draws))

    def look(self, target: Target, constants: _TemperedConstants, x: States, step: Array) -> tuple[Array, Step]:
        smooth = {name: value for name, value in x.items() if not target.is_discrete(name)}
        radius = [target.denoised_variance(name, step, constants.power[name]) for name in smooth]
        uncertain = jnp.max(jnp.stack(radius)) * constants.curvature if radius else 0.0
        temper = 1 / (1 + uncertain + constants.coupling)

        def log_psi(smooth: States) -> tuple[Array, Any]:
            outputs, steps, x_0 = {}, {}, {}
            for name, x_t in {**x, **smooth}.items():
                outputs[name], steps[name] = target.network(name, x_t, step)
                estimate = likeliest if target.is_discrete(name) else Target.denoised
                x_0[name] = estimate(target, name, outputs[name], x_t, step)
            return temper * target.log_factor(x_0), (outputs, steps, x_0)

        value, pull, (outputs, steps, x_0) = jax.vjp(log_psi, smooth, has_aux=True)
        (gradient,) = pull(jnp.ones_like(value))
        tilted = {name: target.chains[name].kernel.tilt(steps[name], finite(slope)) for name, slope in gradient.items()}
        for name in sorted(x.keys() - smooth.keys()):
            gained, tilted[name] = look_at_site(target, name, outputs[name], x, x_0, step, temper)
            value = value + gained
        move = TiltedStep(steps, tilted)
        if len(smooth) == len(x):
            return value, move
        doubt = -0.5 * jnp.expm1(-constants.coupling)
        broad = jnp.where(constants.log_mean > -jnp.inf, constants.log_mean, value)
        mixed = jnp.logaddexp(jnp.log1p(-doubt) + value, jnp.log(doubt) + broad)
        trust = jnp.where(doubt > 0, jnp.exp(jnp.log1p(-doubt) + value - mixed), 1.0)
        return mixed, MixedStep(move, jnp.minimum(trust, 1.0))


def _largest_curvature(target: Target, prior_draws: States, num_iterations: int) -> Array:
    """h, shape (E...): the largest eigenvalue of the Hessian of -log r over prior draws, at least 0."""
    smooth = {name: x for name, x in prior_draws.items() if not target.is_discrete(name)}
    if not smooth:
        return jnp.zeros(target.element_shape)
    energy = lambda smooth: -target.log_factor({**prior_draws, **smooth}).sum()  # noqa: E731
    slope = jax.grad(energy)

    def length(vector: States) -> Array:
        squares = [target.by_element(finite(v) ** 2) for v in vector.values()]
        return jnp.sqrt(sum(squares[1:], squares[0]))

    def unit(vector: States) -> States:
        size = length(vector)
        size = jnp.where(size > 0, size, 1.0)
        return {n: finite(v) / expand_right(size, v.ndim - size.ndim) for n, v in vector.items()}

    def iterate(vector: States, _: None) -> tuple[States, Array]:
        product = jax.jvp(slope, (smooth,), (vector,))[1]
        parts = [target.by_element(finite(product[name]) * vector[name]) for name in vector]
        return unit(product), sum(parts[1:], parts[0])

    # Noise beside the gradient: a direction that the gradient misses is found too.
    keys = jax.random.split(jax.random.key(0), len(smooth))
    noise = {n: jax.random.normal(key, v.shape, v.dtype) for key, (n, v) in zip(keys, smooth.items(), strict=True)}
    direction, noise = unit(slope(smooth)), unit(noise)
    start = unit({n: direction[n] + 0.1 * noise[n] for n in smooth})
    _, found = jax.lax.scan(iterate, start, None, length=num_iterations)
    return jnp.maximum(jnp.max(found[-1], axis=0), 0.0)
