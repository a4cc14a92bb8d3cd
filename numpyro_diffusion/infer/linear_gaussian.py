r"""The twist for observations that are Normal with a mean that is locally linear in the diffusion sites.

For y = g(x^0) + N(0, R), with G the Jacobian of g at x0hat(x^t) and C_t an estimate of the covariance of x^0 given x^t,

    psi_t(x^t) = N(y; g(x0hat), R + G C_t G^T)

which is exact when p(x^0 | x^t) is Gaussian and g linear. Given x^t, x^{t-1} = c_t x^0 + ... has covariance c_t G C_t
with y, so particles move by p(x^{t-1} | x^t) = N(mean, s^2) conditioned on y as if

    y = g(x0hat) + c_t G C_t s^-2 (x^{t-1} - mean) + N(0, R + tau_t G C_t G^T)

where tau_t = lower_t / (lower_t + c_t^2 r_t^2) is the share of the variance of x^0 that x^{t-1} leaves open (its bridge's part of the step). At t = 1
C_1 = s^2 and nothing is left open: the last step is the exact product p(x^0 | x^1) r(x^0).

C_t by ``covariance``:

    "jacobian"   v_t / sqrt(abar_t) d x0hat / d x^t (exact for an exact denoiser): one pass back through the network
                 for each of the m observed numbers of an element
    "diagonal"   the variance of x^0 that the reverse step's variance stands for, (s^2 - lower_t) / c_t^2: no pass back
    "scale"      r_t^2: no pass back

Assumed: R does not depend on x strongly (it is taken at x0hat). Not assumed: that g is linear.

References: Boys et al. 2023, Rozet et al. 2024 (moment matching); Cardoso et al. 2024; Doucet et al. 2000.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._checks import expected
from .._typing import Array
from .proposals import ConditionedStep, Step, flatten, normal_log_density
from .sites import SplitModel, Values, unwrap_diffusion
from .target import States, Target
from .twists import denoised_variance, prior_power

__all__ = ["LinearGaussian"]

Covariance = Literal["jacobian", "diagonal", "scale"]


class _Observation(NamedTuple):
    residual: Array  # y - g(x), (E..., m)
    covariance: Array  # R, (E..., m, m)


@dataclasses.dataclass(frozen=True)
class LinearGaussian:
    """Moment-matched Gaussian look-ahead, and conditioned moves.

    Args:
        covariance: ``"jacobian"``, ``"diagonal"`` or ``"scale"``.
    """

    covariance: Covariance = "jacobian"
    num_prior_draws: int = 64

    def __post_init__(self) -> None:
        if self.covariance not in get_args(Covariance):
            raise ValueError(
                expected(
                    f"covariance one of {', '.join(get_args(Covariance))}",
                    repr(self.covariance),
                    "Choose one of these names.",
                )
            )

    def num_passes_back(self, split: SplitModel) -> int:
        if self.covariance != "jacobian":
            return 0
        x = {site.name: jnp.zeros(site.shape) for site in split.sites}
        others = split.draw_others(jax.random.key(0))[0]
        return jax.eval_shape(lambda x: _observe(split, others, x).residual, x).shape[-1]

    def prepare(self, target: Target, prior_draws: States) -> dict[str, Array]:
        for name in target.chains:
            if target.is_discrete(name):
                raise TypeError(
                    expected(
                        f"a Gaussian kernel at site {name!r}",
                        "a discrete one",
                        "Use the tempered twist, which does bits.",
                    )
                )
        return {name: prior_power(target, prior_draws, name) for name in prior_draws}

    def look(self, target: Target, constants: dict[str, Array], x: States, step: Array) -> tuple[Array, Step]:
        leading = 1 + len(target.element_shape)

        def residual(x: States) -> tuple[Array, Any]:
            laws, x_0 = {}, {}
            for name, x_t in x.items():
                output, laws[name] = target.network(name, x_t, step)
                x_0[name] = target.denoised(name, output, x_t, step)
            seen = jax.vmap(lambda x_0: _observe(target.split, target.others, x_0))(x_0)
            return seen.residual, (laws, x_0, seen.covariance)

        if self.covariance == "jacobian":
            innovation, pull, (laws, x_0, noise) = jax.vjp(residual, x, has_aux=True)
            through = {name: -slope for name, slope in _rows(pull, innovation).items()}
        else:
            innovation, (laws, x_0, noise) = residual(x)
            through = {}
        seen, pull_observation = jax.vjp(
            lambda x_0: jax.vmap(lambda x_0: _observe(target.split, target.others, x_0).residual)(x_0), x_0
        )
        slopes = {name: -slope for name, slope in _rows(pull_observation, seen).items()}  # G

        crossed, shares, gains = {}, {}, {}
        for name, law in laws.items():
            gain, lower = _bridge(target, name, step, law.loc)
            radius = denoised_variance(target, name, step, constants[name])
            crossed[name] = self._cross(target, name, step, slopes[name], through.get(name), law, gain, lower, radius)
            share = lower / (lower + gain**2 * radius)
            shares[name] = jnp.where(target.moves(name, step), share, 1.0)
            gains[name] = jnp.where(target.moves(name, step), gain, 0.0)

        order = sorted(laws)
        flat_slopes = {name: _matrix(slopes[name], leading) for name in order}
        flat_crossed = {name: _matrix(crossed[name], leading) for name in order}
        spread = {name: _symmetric(flat_crossed[name] @ jnp.swapaxes(flat_slopes[name], -1, -2)) for name in order}
        remaining = noise + sum(shares[name] * spread[name] for name in order)
        log_psi = normal_log_density(innovation, noise + sum(spread[name] for name in order))
        variance = {name: flatten({name: laws[name].scale ** 2}, leading) for name in order}
        slope = jnp.concatenate(
            [gains[name] * flat_crossed[name] / variance[name][..., None, :] for name in order], axis=-1
        )
        sizes = tuple(int(variance[name].shape[-1]) for name in order)
        return log_psi, ConditionedStep(laws, slope, innovation, remaining, sizes)

    def _cross(
        self,
        target: Target,
        name: str,
        step: Array,
        slope: Array,
        through: Any,
        law: Any,
        gain: Array,
        lower: Array,
        radius: Array,
    ) -> Array:
        """G C_t, of G's shape (m, N, site shape...)."""
        at_last = slope * law.scale**2  # C_1 = s^2
        if self.covariance == "scale":
            cross = slope * radius
        elif self.covariance == "diagonal":
            cross = slope * jnp.maximum(law.scale**2 - lower, 0.0) / gain**2
        else:
            schedule, t = target.chains[name].kernel.schedule, target.level(name, step)
            alpha_bar, noise = (jnp.asarray(v, float)[t] for v in (schedule.alpha_bar, schedule.noise_variance))
            # Where no signal is left, x^t says nothing of x^0: its variance is the prior's.
            has_signal = alpha_bar > jnp.finfo(alpha_bar.dtype).tiny
            factor = noise / jnp.sqrt(jnp.where(has_signal, alpha_bar, 1.0))
            cross = jnp.where(has_signal, factor * through, slope * radius)
        return jnp.where(target.level(name, step) == 1, at_last, cross)


def _observe(split: SplitModel, others: Values, x_0: States) -> _Observation:
    """Residuals and their covariance at one particle's x_0.

    Raises:
        TypeError: if a site that depends on x is not Normal or MultivariateNormal.
    """
    elements = split.element_shape
    residuals, covariances = [], []
    for name, site in split.sites_seen(x_0, others).items():
        law, _ = unwrap_diffusion(site["fn"])
        scale = site["scale"]
        if not isinstance(law, (dist.Normal, dist.MultivariateNormal)) or scale is not None:
            raise TypeError(
                expected(
                    f"a Normal or MultivariateNormal law at site {name!r} for the gaussian twist",
                    type(law).__name__ if scale is None else "a scaled one",
                    "Use twist='tempered', which takes any likelihood.",
                )
            )
        value = jnp.asarray(site["value"])
        shape = jnp.broadcast_shapes(value.shape, site["fn"].shape())
        residual = jnp.broadcast_to(value - law.mean, shape).reshape((*elements, -1))
        size = residual.shape[-1]
        if isinstance(law, dist.Normal):
            variance = jnp.broadcast_to(law.variance, shape).reshape((*elements, size))
            covariance = variance[..., None] * jnp.eye(size)
        else:
            event = law.event_shape[0]
            blocks = jnp.broadcast_to(law.covariance_matrix, (*shape, event)).reshape((*elements, -1, event, event))
            covariance = jnp.einsum("...bij,bc->...bicj", blocks, jnp.eye(blocks.shape[-3])).reshape(
                (*elements, size, size)
            )
        residuals.append(residual)
        covariances.append(covariance)
    if not residuals:
        raise ValueError(
            expected(
                "an observed Normal site that depends on a diffusion site", "none", "Condition the model on data first."
            )
        )
    return _Observation(jnp.concatenate(residuals, axis=-1), _block_diagonal(covariances))


def _block_diagonal(blocks: list[Array]) -> Array:
    if len(blocks) == 1:
        return blocks[0]
    sizes = [block.shape[-1] for block in blocks]
    rows = [
        jnp.concatenate([block if i == j else jnp.zeros((*block.shape[:-1], size)) for j, size in enumerate(sizes)], -1)
        for i, block in enumerate(blocks)
    ]
    return jnp.concatenate(rows, axis=-2)


def _rows(pull: Any, like: Array) -> States:
    """One pull-back for each of the m numbers, of all particles and elements at once: site -> (m, N, site shape...)."""
    unit = jnp.eye(like.shape[-1], dtype=like.dtype)
    return jax.vmap(lambda row: pull(jnp.broadcast_to(row, like.shape))[0])(unit)


def _matrix(rows: Array, leading: int) -> Array:
    """(m, N, E..., rest) as (N, E..., m, D)."""
    flat = rows.reshape(rows.shape[: 1 + leading] + (-1,))
    return jnp.moveaxis(flat, 0, -2)


def _symmetric(matrix: Array) -> Array:
    """The nearest symmetric matrix, with no negative variance."""
    if matrix.shape[-1] == 1:
        return jnp.maximum(matrix, 0.0)
    values, vectors = jnp.linalg.eigh(0.5 * (matrix + jnp.swapaxes(matrix, -1, -2)))
    return jnp.einsum("...ij,...j,...kj->...ik", vectors, jnp.maximum(values, 0.0), vectors)


def _bridge(target: Target, name: str, step: Array, like: Array) -> tuple[Array, Array]:
    """c_t and the bridge's variance."""
    kernel: Any = target.chains[name].kernel
    t = target.level(name, step)
    zero = jnp.zeros((), like.dtype)
    gain = kernel.bridge(zero, jnp.ones((), like.dtype), t).loc
    return gain, kernel.bridge(zero, zero, t).scale ** 2
