r"""One island of particles from x^T to x^0: twisted sequential Monte Carlo, plain or around a retained path.

At each level the particles are weighted by the twist, resampled when their effective size falls below N/2, and moved.
Memory does not grow with T unless paths are kept. The estimate of the evidence is unbiased for every N; with a
retained path (conditional SMC, particle Gibbs) the posterior of the path is left invariant for every N >= 2.

A twist that is zero or undefined at some particles would lose what can still turn out well (an estimate of x^0 where
the likelihood is zero says little of x^0): there it is replaced by 1/e of the smallest other. A much smaller value is
as correct in the limit and silently wrong before: a sharp edge in the likelihood put the evidence off by 18 of its
standard errors with e^-50.

References: Del Moral, Doucet, Jasra 2006; Andrieu, Doucet, Holenstein 2010.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array
from .._weights import effective_size, gather, log_mean_exp, multinomial, systematic
from .ordering import hilbert_order
from .target import States, Target

__all__ = ["Cloud", "choose_path", "run_filter"]

_TWIST_FLOOR = 1.0  # nats below the smallest finite twist


class Cloud(NamedTuple):
    """What one island of particles ends with. Numbers of elements have shape (E...)."""

    x: dict[str, Any]  # (N, site shape...)
    log_weights: Array  # (N, E...), not normalised
    log_evidence: Array  # (E...), without the shared factor
    effective_sizes: Array  # (T + 1, E...), index = level, before resampling
    log_means: Array  # (T + 1, E...), the factors of the evidence: -inf where all weights were zero
    num_undefined: Array  # particles at which log r was NaN at level 0
    levels: States | None  # (T, N, site shape...), levels 1..T before resampling
    ancestors: Array | None  # (T, N, E...)


def run_filter(
    target: Target,
    twist: Any,
    constants: Any,
    key: jax.Array,
    num_particles: int,
    *,
    directions: Array | None = None,
    retained: States | None = None,
    independent: bool = False,
    keep_paths: bool = False,
) -> Cloud:
    """Walk from level T to 0.

    Args:
        target: chains and factor.
        twist: with ``look(target, constants, x, step) -> (log psi (N, E...), Step)``.
        constants: what the twist has prepared.
        key: randomness.
        num_particles: N.
        directions: (D, 2), the plane in which particles are ordered before systematic resampling; None for no order.
        retained: paths, site name -> (T_site + 1, site shape...), that particle 0 follows.
        independent: resample independently, as with a retained path, and not systematically.
        keep_paths: keep every level and its ancestors.
    """
    weights_shape = (num_particles, *target.element_shape)
    key_start, key_steps = jax.random.split(key)

    def keep(x: States, level: Array | int) -> States:
        if retained is None:
            return x
        return {n: v.at[0].set(retained[n][target.level(n, level)].astype(v.dtype)) for n, v in x.items()}

    def step(carry: tuple[States, Array, Array, Array], level: Array) -> Any:
        x, log_weights, log_psi_before, log_evidence = carry
        key_resample, key_move = jax.random.split(jax.random.fold_in(key_steps, level))
        log_psi, move = twist.look(target, constants, x, level)
        log_psi = _positive(log_psi)
        log_weights, gained = _renormalise(log_weights + log_psi - log_psi_before)
        size = effective_size(log_weights)
        if retained is None and not independent:
            order = None if directions is None else hilbert_order(target, directions, x)
            ancestors = systematic(key_resample, log_weights, order=order)
        else:
            ancestors = multinomial(key_resample, log_weights)
        if retained is not None:
            ancestors = ancestors.at[0].set(0)
        kept = jnp.broadcast_to(
            jnp.arange(num_particles, dtype=ancestors.dtype).reshape((-1,) + (1,) * (len(weights_shape) - 1)),
            weights_shape,
        )
        resample = size < 0.5 * num_particles
        ancestors = jnp.where(resample, ancestors, kept)
        moved_from, move, log_psi = gather((x, move, log_psi), ancestors)
        log_weights = jnp.where(resample, 0.0, log_weights)
        proposed = keep(move.sample(key_move), level - 1)
        x_next = {name: target.advance(name, moved_from[name], proposed[name], level) for name in x}
        log_weights = log_weights + move.log_ratio(target, x_next, level)
        if retained is not None:  # nobody hears of a NaN inside a Markov chain, and the others must move on
            log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
        return (x_next, log_weights, log_psi, log_evidence + gained), (
            (size, gained),
            (x, ancestors) if keep_paths else None,
        )

    x = keep(target.start(key_start, num_particles), target.num_steps)
    zeros = jnp.zeros(weights_shape)
    start = (x, zeros, zeros, jnp.zeros(target.element_shape))
    levels = jnp.arange(1, target.num_steps + 1)
    (x, log_weights, log_psi, log_evidence), ((sizes, gains), history) = jax.lax.scan(step, start, levels, reverse=True)
    log_r = target.log_factor(x)
    undefined = jnp.isnan(log_r)
    log_weights = log_weights + jnp.where(undefined, -jnp.inf, log_r) - log_psi
    last_gain = log_mean_exp(log_weights)
    return Cloud(
        x=x,
        log_weights=log_weights,
        log_evidence=log_evidence + last_gain,
        effective_sizes=jnp.concatenate([effective_size(log_weights)[None], sizes]),
        log_means=jnp.concatenate([last_gain[None], gains]),
        num_undefined=undefined.sum(),
        levels=history[0] if keep_paths else None,
        ancestors=history[1] if keep_paths else None,
    )


def choose_path(target: Target, cloud: Cloud, index: Array) -> States:
    """The whole path of particle ``index`` of level 0, for each element: site name -> (T_site + 1, site shape...)."""

    def pick(values: States, at: Array) -> States:
        return jax.tree.map(lambda leaf: leaf[0], gather(values, at[None]))

    def step(at: Array, level: tuple[States, Array]) -> tuple[Array, States]:
        values, ancestors = level
        at = gather(ancestors, at[None])[0]
        return at, pick(values, at)

    last = pick(cloud.x, index)
    history: Any = (cloud.levels, cloud.ancestors)
    _, above = jax.lax.scan(step, index.astype(history[1].dtype), history)
    return {
        name: jnp.concatenate([last[name][None], above[name][: target.chains[name].kernel.num_steps]]) for name in last
    }


def _renormalise(log_weights: Array) -> tuple[Array, Array]:
    """Weights with mean one, and the log of the mean that was taken out."""
    mean = log_mean_exp(log_weights)
    return log_weights - jnp.where(mean == -jnp.inf, 0.0, mean), mean


def _positive(log_psi: Array) -> Array:
    """Finite everywhere: see the module's docstring."""
    finite = jnp.isfinite(log_psi)
    smallest = jnp.min(jnp.where(finite, log_psi, jnp.inf), axis=0)
    return jnp.where(finite, log_psi, jnp.where(jnp.isfinite(smallest), smallest, 0.0) - _TWIST_FLOOR)
