r"""Particles from x^T to x^0: twisted sequential Monte Carlo, plain or around a retained path.

    init      N particles of pi
    step      level t to t - 1: weigh by the twist, resample where the effective size is below N / 2, move
    finish    level 0: weigh by the likelihood itself

Everything is a pure function of arrays. Memory does not grow with T unless paths are kept. The estimate of the evidence
is unbiased for every N; with a retained path (conditional SMC, particle Gibbs) the posterior of the path is left
invariant for every N >= 2.

A twist may be zero or undefined at a particle that can still reach the data, for the likelihood of an estimate of x^0
says little of x^0. There the twist is replaced by 1/e of its smallest other value. A much smaller replacement has the
same limit and fails silently before: with e^-50, a sharp edge in the likelihood put the evidence off by 18 of its
standard errors.

References: Del Moral, Doucet, Jasra 2006; Andrieu, Doucet, Holenstein 2010.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array
from .._weights import effective_size, gather, log_mean_exp, multinomial, systematic
from .target import States, Target

__all__ = ["Cloud", "SMCInfo", "SMCState", "choose_path", "finish", "init", "run_filter", "step"]

_TWIST_FLOOR = 1.0  # nats below the smallest finite twist


class SMCState(NamedTuple):
    """Particles of one island at a level: what the next step needs. Numbers of elements have shape (N, E...).

    Attributes:
        x: states by site, (N, site shape...).
        log_weights: not normalised.
        log_psi: the twist that the weights contain.
        log_evidence: what has been taken out of the weights, (E...).
    """

    x: States
    log_weights: Array
    log_psi: Array
    log_evidence: Array


class SMCInfo(NamedTuple):
    """What happened at a level, before resampling.

    Attributes:
        effective_size: (E...).
        log_mean: the log of the mean weight, a factor of the evidence, (E...); -inf where all weights were zero.
        x: the particles that were weighed, (N, site shape...).
        ancestors: of the particles that moved, (N, E...).
    """

    effective_size: Array
    log_mean: Array
    x: States
    ancestors: Array


class Cloud(NamedTuple):
    """The particles of one island at level 0, and how they came there. Numbers of elements have shape (E...)."""

    x: dict[str, Any]  # (N, site shape...)
    log_weights: Array  # (N, E...), not normalised
    log_evidence: Array  # (E...)
    effective_sizes: Array  # (T + 1, E...), index = level, before resampling
    log_means: Array  # (T + 1, E...), the factors of the evidence: -inf where all weights were zero
    num_undefined: Array  # particles at which log r was NaN at level 0
    levels: States | None  # (T, N, site shape...), levels 1..T before resampling
    ancestors: Array | None  # (T, N, E...)


def init(rng_key: jax.Array, target: Target, num_particles: int, *, retained: States | None = None) -> SMCState:
    """N particles at level T."""
    zeros = jnp.zeros((num_particles, *target.element_shape))
    x = _keep(target, target.start(rng_key, num_particles), target.num_steps, retained)
    return SMCState(x, zeros, zeros, jnp.zeros(target.element_shape))


def step(
    rng_key: jax.Array,
    state: SMCState,
    level: Array,
    target: Target,
    look: Any,
    *,
    retained: States | None = None,
    independent: bool = False,
) -> tuple[SMCState, SMCInfo]:
    """Particles from ``level`` to ``level`` - 1.

    Args:
        rng_key: randomness.
        state: particles at ``level``.
        level: of the longest chain, >= 1.
        target: chains and likelihood.
        look: ``(x, level) -> (log psi (N, E...), Step)``: a twist with its constants.
        retained: paths, site name -> (T_site + 1, site shape...), that particle 0 follows.
        independent: resample independently, as with a retained path, and not systematically.
    """
    key_resample, key_move = jax.random.split(rng_key)
    x = state.x
    log_psi, move = look(x, level)
    log_psi = _positive(log_psi)
    log_weights, log_mean = _renormalise(state.log_weights + log_psi - state.log_psi)
    num_particles, *elements = log_weights.shape
    size = effective_size(log_weights)
    if retained is None and not independent:
        ancestors = systematic(key_resample, log_weights)
    else:
        ancestors = multinomial(key_resample, log_weights)
    if retained is not None:
        ancestors = ancestors.at[0].set(0)
    themselves = jnp.arange(num_particles, dtype=ancestors.dtype).reshape((-1,) + (1,) * len(elements))
    resample = size < 0.5 * num_particles
    ancestors = jnp.where(resample, ancestors, themselves)
    moved_from, move, log_psi = gather((x, move, log_psi), ancestors)
    log_weights = jnp.where(resample, 0.0, log_weights)
    proposed = _keep(target, move.sample(key_move), level - 1, retained)
    x_next = {name: target.advance(name, moved_from[name], proposed[name], level) for name in x}
    log_weights = log_weights + move.log_ratio(target, x_next, level)
    if retained is not None:  # nobody hears of a NaN inside a Markov chain, and the others must move on
        log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    following = SMCState(x_next, log_weights, log_psi, state.log_evidence + log_mean)
    return following, SMCInfo(size, log_mean, x, ancestors)


def finish(state: SMCState, target: Target) -> tuple[SMCState, SMCInfo, Array]:
    """Particles at level 0 weighed by the likelihood, and at how many of them it was NaN."""
    log_r = target.log_factor(state.x)
    undefined = jnp.isnan(log_r)
    log_weights = state.log_weights + jnp.where(undefined, -jnp.inf, log_r) - state.log_psi
    log_mean = log_mean_exp(log_weights)
    info = SMCInfo(effective_size(log_weights), log_mean, state.x, jnp.zeros(log_weights.shape, int))
    return SMCState(state.x, log_weights, log_r, state.log_evidence + log_mean), info, undefined.sum()


def run_filter(
    target: Target,
    twist: Any,
    constants: Any,
    rng_key: jax.Array,
    num_particles: int,
    *,
    retained: States | None = None,
    independent: bool = False,
    keep_paths: bool = False,
) -> Cloud:
    """Walk from level T to 0.

    Args:
        target: chains and likelihood.
        twist: with ``look(target, constants, x, level) -> (log psi (N, E...), Step)``.
        constants: what the twist has prepared.
        rng_key: randomness.
        num_particles: N.
        retained: as for :func:`step`.
        independent: as for :func:`step`.
        keep_paths: keep every level and its ancestors.
    """
    key_start, key_steps = jax.random.split(rng_key)

    def walk(state: SMCState, level: Array) -> tuple[SMCState, tuple]:
        state, info = step(
            jax.random.fold_in(key_steps, level),
            state,
            level,
            target,
            lambda x, level: twist.look(target, constants, x, level),
            retained=retained,
            independent=independent,
        )
        return state, (info.effective_size, info.log_mean, (info.x, info.ancestors) if keep_paths else None)

    start = init(key_start, target, num_particles, retained=retained)
    levels = jnp.arange(1, target.num_steps + 1)
    state, (sizes, means, history) = jax.lax.scan(walk, start, levels, reverse=True)
    state, last, num_undefined = finish(state, target)
    return Cloud(
        x=state.x,
        log_weights=state.log_weights,
        log_evidence=state.log_evidence,
        effective_sizes=jnp.concatenate([last.effective_size[None], sizes]),
        log_means=jnp.concatenate([last.log_mean[None], means]),
        num_undefined=num_undefined,
        levels=history[0] if keep_paths else None,
        ancestors=history[1] if keep_paths else None,
    )


def choose_path(target: Target, cloud: Cloud, index: Array) -> States:
    """The whole path of particle ``index`` of level 0, for each element: site name -> (T_site + 1, site shape...)."""

    def pick(values: States, at: Array) -> States:
        return jax.tree.map(lambda leaf: leaf[0], gather(values, at[None]))

    def back(at: Array, level: tuple[States, Array]) -> tuple[Array, States]:
        values, ancestors = level
        at = gather(ancestors, at[None])[0]
        return at, pick(values, at)

    last = pick(cloud.x, index)
    history: Any = (cloud.levels, cloud.ancestors)
    _, above = jax.lax.scan(back, index.astype(history[1].dtype), history)
    return {name: jnp.concatenate([last[name][None], above[name][: target.chains[name].num_steps]]) for name in last}


def _keep(target: Target, x: States, level: Array | int, retained: States | None) -> States:
    """Particle 0 on its retained path."""
    if retained is None:
        return x
    return {n: v.at[0].set(retained[n][target.level(n, level)].astype(v.dtype)) for n, v in x.items()}


def _renormalise(log_weights: Array) -> tuple[Array, Array]:
    """Weights with mean one, and the log of the mean that was taken out."""
    mean = log_mean_exp(log_weights)
    return log_weights - jnp.where(mean == -jnp.inf, 0.0, mean), mean


def _positive(log_psi: Array) -> Array:
    """Finite everywhere: see the module's docstring."""
    finite = jnp.isfinite(log_psi)
    smallest = jnp.min(jnp.where(finite, log_psi, jnp.inf), axis=0)
    return jnp.where(finite, log_psi, jnp.where(jnp.isfinite(smallest), smallest, 0.0) - _TWIST_FLOOR)
