r"""The twist for observations that are Normal with a mean that is locally linear in the diffusion sites.

For y = g(x^0) + N(0, R), with G the Jacobian of g at x0hat(x^t) and C_t an estimate of the covariance of x^0 given x^t,

    psi_t(x^t) = (1 - d_t) N(y; g(x0hat), R + G C_t G^T) + d_t N(y; prior predictive moments),   d_t = .1 r_t^2 / S^2

whose first part is exact when p(x^0 | x^t) is Gaussian and g linear. Where modes are still open it is not: a mode of
small probability adds next to nothing to C_t, and a particle that may yet go there would look impossible. The second
part, a tenth of the share of the prior's variance that x^t leaves open, keeps it.

Given x^t, x^{t-1} = c_t x^0 + ... has covariance c_t G C_t with y, so particles move by p(x^{t-1} | x^t) = N(mean, s^2)
conditioned on y as if

    y = g(x0hat) + c_t G C_t s^-2 (x^{t-1} - mean) + N(0, R + tau_t G C_t G^T)

where tau_t = lower_t / (lower_t + c_t^2 r_t^2) is the share of the variance of x^0 that x^{t-1} leaves open. At t = 1
C_1 = s^2 and nothing is left open: the last step is the exact product p(x^0 | x^1) r(x^0).

C_t by ``covariance``:

    "jacobian"   v_t / sqrt(abar_t) d x0hat / d x^t (exact for an exact denoiser): one pass back through the network
                 for each of the m observed numbers of an element
    "secant"     the positive definite matrix nearest to r_t^2 I that agrees with the Jacobian along the one direction
                 in which y pulls x^0: one pass back whatever m; for m = 1 the same as "jacobian"
    "scale"      r_t^2 I: no pass back
    "errors"     the mean of Cov[x^0 | x^t] over x^t, which the prior carries (``prior.with_errors``): no pass back

A number behind a mask has no row in G, and in R a variance of its own, whose factor in psi is taken away again: the
twist is that of the other numbers alone.

Assumed: R does not depend on x strongly (it is taken at x0hat). Not assumed: that g is linear.

References: Boys et al. 2023, Rozet et al. 2024 (moment matching); Nocedal and Wright 2006, Eq. 6.19
(BFGS); Cardoso et al. 2024; Doucet et al. 2000.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..._checks import check_choice, check_integer_at_least, expected
from ..._numerics import expand_right
from ..._small_matrices import is_covariance, normal_log_density, solve, symmetric
from ..._typing import Array
from ..steps import ConditionedStep, Step, flatten
from ..target import States, Target
from .base import prior_power

__all__ = ["LinearGaussian"]

Covariance = Literal["secant", "jacobian", "scale", "errors"]


# Chosen on other problems than the benchmark's: 1 keeps too many particles in modes that y excludes (d = 80), and 0
# left one problem in eight (d = 8) with 58 effective particles of 4096.
_DOUBT = 0.1


class _Constants(NamedTuple):
    power: dict[str, Array]  # S^2, () each
    residual: Array  # the mean of y - g(x) over the prior, (E..., m)
    covariance: Array  # of y over the prior, (E..., m, m)
    unit: Array  # the variance that stands for a masked number's, (E...)


@dataclasses.dataclass(frozen=True)
class LinearGaussian:
    """Moment-matched Gaussian look-ahead, and conditioned moves.

    Args:
        covariance: ``"secant"``, ``"jacobian"``, ``"scale"`` or ``"errors"``.
        num_prior_draws: of the prior, for its variance S^2, >= 2.

    >>> LinearGaussian("jacobian")  # TwistedSMC(model, twist=LinearGaussian("jacobian")); "gaussian" is the secant
    LinearGaussian(covariance='jacobian', num_prior_draws=64)
    """

    covariance: Covariance = "secant"
    num_prior_draws: int = 64

    def __post_init__(self) -> None:
        check_choice("covariance", self.covariance, Covariance)
        check_integer_at_least("num_prior_draws", self.num_prior_draws, 2, "A variance needs some.")

    def num_passes_back(self, target: Target) -> int:
        if self.covariance != "jacobian":
            return 1 if self.covariance == "secant" else 0
        x = {name: jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for name, shape in target.shapes.items()}
        return jax.eval_shape(lambda x: _observe(target, x).residual, x).shape[-1]

    def prepare(self, target: Target, prior_draws: States) -> _Constants:
        for name in target.chains:
            if target.is_discrete(name):
                raise TypeError(
                    expected(
                        f"a Gaussian kernel at site {name!r}",
                        "a discrete one",
                        "Use the tempered twist, which does bits.",
                    )
                )
            if self.covariance == "errors" and name not in target.errors:
                raise ValueError(
                    expected(
                        f"a prior at site {name!r} that carries the covariance of its network's errors",
                        "one that does not",
                        "Use prior.with_errors(guidance.error_covariance(rng_key, prior.chain)).",
                    )
                )
        seen = jax.vmap(lambda x: _observe(target, x))(prior_draws)
        # Draws at which the mean or the noise of y is not defined say nothing of how y is distributed.
        defined = jnp.isfinite(seen.residual).all(-1) & jnp.isfinite(seen.covariance).all((-2, -1))
        count = jnp.maximum(defined.sum(0), 1)
        average = lambda values, ndim: (  # noqa: E731
            jnp.where(expand_right(defined, ndim), values, 0.0).sum(0) / expand_right(count, ndim)
        )
        residual = average(seen.residual, 1)
        centred = seen.residual - residual
        spread = centred[..., :, None] * centred[..., None, :]
        power = {name: prior_power(target, prior_draws, name) for name in prior_draws}
        covariance = average(spread + seen.covariance, 2)
        is_seen = jnp.any(seen.seen, axis=0)
        total = jnp.where(is_seen, jnp.diagonal(covariance, axis1=-2, axis2=-1), 0.0).sum(-1)
        unit = jnp.where(total > 0, total / jnp.maximum(is_seen.sum(-1), 1), 1.0)  # beside it no pivot is rounding
        return _Constants(power, residual, _fill(covariance, is_seen, unit), unit)

    def look(self, target: Target, constants: _Constants, x: States, step: Array) -> tuple[Array, Step]:
        leading = 1 + len(target.element_shape)

        def residual(x: States) -> tuple[Array, Any]:
            steps, x_0 = {}, {}
            for name, x_t in x.items():
                output, steps[name] = target.network(name, x_t, step)
                x_0[name] = target.denoised(name, output, x_t, step)
            seen = jax.vmap(lambda x_0: _observe(target, x_0))(x_0)
            return seen.residual, (steps, x_0, seen)

        innovation, pull, (steps, x_0, observed) = jax.vjp(residual, x, has_aux=True)
        noise = _fill(observed.covariance, observed.seen, constants.unit)
        seen, pull_seen = jax.vjp(lambda x_0: jax.vmap(lambda x_0: _observe(target, x_0).residual)(x_0), x_0)
        order = sorted(steps)
        slopes = {name: -_matrix(rows, leading) for name, rows in _rows(pull_seen, seen).items()}  # G
        radius = {name: target.denoised_variance(name, step, constants.power[name]) for name in order}
        variance = {name: flatten({name: steps[name].scale ** 2}, leading) for name in order}
        crossed = {name: radius[name] * slopes[name] for name in order}  # G C

        if self.covariance == "jacobian":
            through = {name: -_matrix(rows, leading) for name, rows in _rows(pull, innovation).items()}
            found = {name: _where_signal(target, name, step, through[name], crossed[name]) for name in order}
            parts = [found[name] @ _transposed(slopes[name]) for name in order]
            trusted = is_covariance(symmetric(sum(parts[1:], parts[0])), noise)
            crossed = {name: jnp.where(trusted[..., None, None], found[name], crossed[name]) for name in order}
        elif self.covariance == "secant":
            assumed = noise + sum(crossed[name] @ _transposed(slopes[name]) for name in order)
            direction = solve(assumed, innovation)
            (back,) = pull(direction)
            for name in order:
                along = jnp.einsum("...md,...m->...d", slopes[name], direction)
                image = _where_signal(target, name, step, -flatten({name: back[name]}, leading), radius[name] * along)
                crossed[name] = _secant(slopes[name], radius[name], along, image)

        elif self.covariance == "errors":
            for name in order:
                crossed[name] = _through_errors(target, name, step, slopes[name])

        shares, gains = {}, {}
        for name in order:
            at_last = target.level(name, step) == 1
            crossed[name] = jnp.where(at_last, slopes[name] * variance[name][..., None, :], crossed[name])  # C_1 = s^2
            gain, lower = target.chains[name].kernel.bridge_terms(target.level(name, step), steps[name].loc)
            shares[name] = jnp.where(target.moves(name, step), lower / (lower + gain**2 * radius[name]), 1.0)
            gains[name] = jnp.where(target.moves(name, step), gain, 0.0)
        spread = {name: symmetric(crossed[name] @ _transposed(slopes[name])) for name in order}
        remaining = noise + sum(shares[name] * spread[name] for name in order)
        log_sharp = normal_log_density(innovation, noise + sum(spread[name] for name in order))
        doubt = _DOUBT * jnp.max(jnp.stack([radius[name] / constants.power[name] for name in order]))
        log_broad = jnp.log(doubt) + normal_log_density(constants.residual, constants.covariance)
        log_psi = jnp.logaddexp(jnp.log1p(-doubt) + log_sharp, log_broad)
        trust = -jnp.expm1(log_broad - log_psi)  # the share of the first part
        log_psi = log_psi + 0.5 * (~observed.seen).sum(-1) * jnp.log(2 * jnp.pi * constants.unit)
        slope = trust[..., None, None] * jnp.concatenate(
            [gains[name] * crossed[name] / variance[name][..., None, :] for name in order], axis=-1
        )
        sizes = tuple(int(variance[name].shape[-1]) for name in order)
        # A particle at which the mean or the noise of y is not defined moves by p.
        defined = jnp.isfinite(log_psi) & jnp.isfinite(slope).all((-2, -1)) & jnp.isfinite(remaining).all((-2, -1))
        slope = jnp.where(defined[..., None, None], slope, 0.0)
        remaining = jnp.where(defined[..., None, None], remaining, jnp.eye(remaining.shape[-1]))
        innovation = jnp.where(defined[..., None], innovation, 0.0)
        return log_psi, ConditionedStep(steps, slope, innovation, remaining, sizes)


def _where_signal(target: Target, name: str, step: Array, through: Array, otherwise: Array) -> Array:
    """n_t / a_t times what came through the network; where no signal is left, x^t says nothing of x^0."""
    gain = target.chains[name].kernel.denoising_gain(target.level(name, step), through)
    return jnp.where(gain > 0, gain * through, otherwise)


def _through_errors(target: Target, name: str, step: Array, slope: Array) -> Array:
    """G C_t, with the covariance of one x for every element and every x of a plate that are filtered together."""
    errors = target.errors[name].at(target.level(name, step), slope.dtype)
    crossed = errors.times(target.errors[name].blocks(slope))
    return crossed.reshape(slope.shape)


def _secant(slope: Array, radius: Array, along: Array, image: Array) -> Array:
    """G C for the C nearest to radius I with C along = image (the BFGS formula); radius G where none is positive."""
    square = (along**2).sum(-1)
    product = (along * image).sum(-1)
    usable = (product > 1e-6 * jnp.sqrt(square * (image**2).sum(-1))) & jnp.isfinite(product)
    square, product = (jnp.where(usable, number, 1.0)[..., None, None] for number in (square, product))
    removed = radius * jnp.einsum("...md,...d->...m", slope, along)[..., None] * along[..., None, :] / square
    added = jnp.einsum("...md,...d->...m", slope, image)[..., None] * image[..., None, :] / product
    return radius * slope + jnp.where(usable[..., None, None], added - removed, 0.0)


def _fill(covariance: Array, seen: Array, unit: Array) -> Array:
    """Masked numbers given a variance of their own."""
    own = jnp.where(seen, 0.0, expand_right(unit, 1))
    return covariance + own[..., None] * jnp.eye(seen.shape[-1])


def _observe(target: Target, x_0: States) -> Any:
    """Residuals (E..., m), their covariance and whether they are seen, at one particle's x_0."""
    if target.observe is None:
        raise TypeError(expected("a target with Normal observations", "none", "Use twist='tempered'."))
    return target.observe(x_0)


def _rows(pull: Any, like: Array) -> States:
    """One pull-back for each of the m numbers, of all particles and elements at once: site -> (m, N, site shape...)."""
    unit = jnp.eye(like.shape[-1], dtype=like.dtype)
    return jax.vmap(lambda row: pull(jnp.broadcast_to(row, like.shape))[0])(unit)


def _matrix(rows: Array, leading: int) -> Array:
    """(m, N, E..., rest) as (N, E..., m, D)."""
    flat = rows.reshape(rows.shape[: 1 + leading] + (-1,))
    return jnp.moveaxis(flat, 0, -2)


def _transposed(matrix: Array) -> Array:
    return jnp.swapaxes(matrix, -1, -2)
