r"""Tempered sequential Monte Carlo against a standard normal, by N particles of pi(u) ~ N(u; 0, I) b(u) w(u).

Particles start as exact draws of N(u; 0, I) b(u), a density; b is 1 if nothing else is said. They follow the targets

    pi_a(u)  proportional to  N(u; 0, I) b(u) w(u)^a,     0 = a_0 < a_1 < ... < 1.

One temperature: weigh by w^(a' - a), resample, then move every particle by trajectories of
:mod:`numpyro_diffusion.noise.hmc` that leave pi_a' invariant, until K are accepted in the mean. The next a' is the one
at which the effective size of the weights is a given share of the particles of positive weight, or 1. The product of
the mean weights estimates the integral of N(u; 0, I) b(u) w(u): the evidence, where w is a likelihood. Modes far apart
get their weights from the particles' weights, and no particle has to cross from one to another.

Trajectories are made in coordinates e in which pi_a is near standard normal: u = centre + spread e for sites that are
named, with the weighted mean and standard deviation of the particles. This changes only how a particle moves:

    N(u; 0, I) b(u) w(u)^a  is proportional to  N(e; 0, I) b(u) w(u)^a exp((e^2 - u^2) / 2).

Temperatures, coordinates, the step size and the number of trajectories are taken from the particles. Were they given
beforehand, the evidence would be unbiased for every N. As it is, evidence and draws converge as N grows, with a bias
of the order of 1/N, below their standard error.

Assumed: log b and log w are finite or -inf, and differentiable almost everywhere where they are finite. A w whose tails
are much heavier than those of N(0, I) b is found by moves only.

References: Neal 2001 (tempering); Del Moral, Doucet, Jasra 2006 (samplers); Beskos, Jasra, Kantas, Thiery 2016 (what
adaptation leaves of them).
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from .._typing import Array, PyTree
from .._weights import effective_size, gather, log_mean_exp, normalised, systematic
from .hmc import MAX_ANGLE, Point, hamiltonian_move, num_steps_of, over_coordinates

__all__ = ["Particle", "Settings", "Start", "TemperedInfo", "TemperedState", "init", "run_tempered", "step"]

Values: TypeAlias = dict[str, Array]

_HALVINGS = 50  # of an interval of temperatures: 2^-50 is below the rounding of 1 in float32
_MOST_TRIES = 5  # trajectories for each that is to be accepted
_FEWEST = 10.0  # effective particles from which a mean and a standard deviation are taken


class Settings(NamedTuple):
    """How particles are moved from one temperature to the next; numbers, known when a program is compiled.

    Attributes:
        num_moves: K, trajectories that a particle accepts at a temperature, in the mean; five times as many are tried.
        target_ess: the effective size that a temperature leaves, over the number of particles of positive weight.
        step_size: angle of the first steps, radians.
        target_accept_prob: the mean acceptance that the angle is adapted to.
        max_steps: the largest mean length of a trajectory.
        max_temperatures: after which the walk ends, wherever it is.
        batch_size: particles that are moved at once, None for all.
    """

    num_moves: int = 2
    target_ess: float = 0.5
    step_size: float = 0.5
    target_accept_prob: float = 0.8
    max_steps: int = 32
    max_temperatures: int = 100
    batch_size: int | None = None


class Start(NamedTuple):
    """Where particles begin: a density N(u; 0, I) b(u).

    Attributes:
        draw: from a key, an exact draw of it.
        log_weight: log b of one particle, nats.
    """

    draw: Callable[[jax.Array], Values]
    log_weight: Callable[[Values], Array]


class Particle(NamedTuple):
    """A particle, or several.

    Attributes:
        u: by site, (site shape...).
        log_weight: log w(u), nats.
        gradient: of it.
        log_start: log b(u), nats.
        start_gradient: of it.
    """

    u: Values
    log_weight: Array
    gradient: Values
    log_start: Array
    start_gradient: Values


class TemperedState(NamedTuple):
    """Particles of one island at a temperature, equally weighted.

    Attributes:
        particles: N of them.
        temperature: a.
        log_evidence: log of the integral of N(u; 0, I) b(u) w(u)^a, estimated.
        centre, spread: of the sites that have coordinates of their own, (site shape...).
        step_size: angle of the next step, radians.
    """

    particles: Particle
    temperature: Array
    log_evidence: Array
    centre: Values
    spread: Values
    step_size: Array


class TemperedInfo(NamedTuple):
    """What happened at a temperature.

    Attributes:
        temperature: that was reached.
        effective_size: of the weights, before resampling.
        accept_prob: mean over particles and trajectories.
        step_size: angle of the next step, radians.
        angle: mean length of the trajectories, radians; a quarter of a turn may be a fresh draw.
        num_gradients: for each particle.
    """

    temperature: Array
    effective_size: Array
    accept_prob: Array
    step_size: Array
    angle: Array
    num_gradients: Array


class _Moves(NamedTuple):
    """Trajectories at one temperature: particles, what came of the trajectories so far, in the mean of particles."""

    particles: Particle
    step_size: Array
    accepted: Array
    angle: Array
    tried: Array
    num_gradients: Array


def init(
    rng_key: jax.Array,
    log_weight: Callable[[Values], Array],
    like: Mapping[str, Any],
    num_particles: int,
    settings: Settings,
    *,
    whitened: Iterable[str] = (),
    start: Start | None = None,
) -> TemperedState:
    """N draws of N(0, I), or of ``start``.

    Args:
        rng_key: randomness.
        log_weight: log w of one particle.
        like: arrays of the sites' shapes and dtypes.
        num_particles: N.
        settings: see there.
        whitened: names of the sites that get coordinates of their own.
        start: where particles begin, if not at N(0, I).
    """
    if start is None:
        names = sorted(like)
        keys = dict(zip(names, jax.random.split(rng_key, max(1, len(names))), strict=False))
        u = {n: jax.random.normal(keys[n], (num_particles, *like[n].shape), like[n].dtype) for n in names}
    else:
        u = _each(start.draw, settings.batch_size, jax.random.split(rng_key, num_particles))
    particles = _each(partial(_particle, log_weight, start), settings.batch_size, u)
    others = {name: u[name][0] for name in sorted(whitened)}
    zero = jnp.zeros_like(particles.log_weight[0])
    return TemperedState(
        particles=particles,
        temperature=zero,
        log_evidence=zero,
        centre=jax.tree.map(jnp.zeros_like, others),
        spread=jax.tree.map(jnp.ones_like, others),
        step_size=jnp.full_like(zero, settings.step_size),
    )


def step(
    rng_key: jax.Array,
    state: TemperedState,
    log_weight: Callable[[Values], Array],
    settings: Settings,
    *,
    start: Start | None = None,
) -> tuple[TemperedState, TemperedInfo]:
    """Particles at the next temperature.

    Args:
        rng_key: randomness.
        state: particles at a temperature below 1.
        log_weight: log w of one particle.
        settings: see there.
        start: where particles began, if not at N(0, I).
    """
    resample_key, moves_key = jax.random.split(rng_key)
    temperature = _next_temperature(state, settings.target_ess)
    log_weights = (temperature - state.temperature) * state.particles.log_weight
    size = effective_size(log_weights)
    centre, spread = _coordinates(state, log_weights, size)
    ancestors = systematic(resample_key, log_weights)
    particles = gather(state.particles, ancestors)
    move = partial(_move_all, log_weight, start, settings, temperature, centre, spread)
    none, zero = jnp.zeros((), int), jnp.zeros_like(size)

    def is_wanting(carry: _Moves) -> Array:
        return (carry.accepted < settings.num_moves) & (carry.tried < _MOST_TRIES * settings.num_moves)

    def move_on(carry: _Moves) -> _Moves:
        key = jax.random.fold_in(moves_key, carry.tried)
        particles, accept_prob, num_steps = move(key, carry.particles, carry.step_size)
        following = carry.step_size * jnp.exp(accept_prob - settings.target_accept_prob)
        return _Moves(
            particles,
            jnp.minimum(following, MAX_ANGLE),
            carry.accepted + accept_prob,
            carry.angle + carry.step_size * num_steps.astype(zero.dtype),
            carry.tried + 1,
            carry.num_gradients + num_steps,
        )

    moved = jax.lax.while_loop(is_wanting, move_on, _Moves(particles, state.step_size, zero, zero, none, none))
    following = TemperedState(
        particles=moved.particles,
        temperature=temperature,
        log_evidence=state.log_evidence + log_mean_exp(log_weights),
        centre=centre,
        spread=spread,
        step_size=moved.step_size,
    )
    accept_prob, angle = (total / moved.tried.astype(zero.dtype) for total in (moved.accepted, moved.angle))
    return following, TemperedInfo(temperature, size, accept_prob, moved.step_size, angle, moved.num_gradients)


def run_tempered(
    rng_key: jax.Array,
    log_weight: Callable[[Values], Array],
    like: Mapping[str, Any],
    num_particles: int,
    settings: Settings,
    *,
    whitened: Iterable[str] = (),
    start: Start | None = None,
) -> tuple[TemperedState, TemperedState, TemperedInfo, Array]:
    """Walk from temperature 0 to 1, or as far as ``max_temperatures`` reach.

    Args:
        rng_key: randomness.
        log_weight: log w of one particle.
        like: arrays of the sites' shapes and dtypes.
        num_particles: N.
        settings: see there.
        whitened: names of the sites that get coordinates of their own.
        start: where particles begin, if not at N(0, I).

    Returns:
        The first and the last state. The info of every temperature, with ``max_temperatures`` in front: those that
        were not needed are NaN and 0. How many there were.
    """
    start_key, steps_key = jax.random.split(rng_key)
    first = init(start_key, log_weight, like, num_particles, settings, whitened=whitened, start=start)
    info = jax.eval_shape(lambda: step(steps_key, first, log_weight, settings, start=start)[1])
    blank = jax.tree.map(lambda x: jnp.full((settings.max_temperatures, *x.shape), _missing(x.dtype), x.dtype), info)

    def is_below_one(carry: tuple[TemperedState, TemperedInfo, Array]) -> Array:
        state, _, count = carry
        return (state.temperature < 1) & (count < settings.max_temperatures)

    def rise(carry: tuple[TemperedState, TemperedInfo, Array]) -> tuple[TemperedState, TemperedInfo, Array]:
        state, history, count = carry
        state, info = step(jax.random.fold_in(steps_key, count), state, log_weight, settings, start=start)
        return state, jax.tree.map(lambda all_of_it, one: all_of_it.at[count].set(one), history, info), count + 1

    end, history, count = jax.lax.while_loop(is_below_one, rise, (first, blank, jnp.zeros((), int)))
    return first, end, history, count


def _missing(dtype: jnp.dtype) -> float:
    return jnp.nan if jnp.issubdtype(dtype, jnp.floating) else 0.0


def _next_temperature(state: TemperedState, target_ess: float) -> Array:
    """The temperature whose weights have the wanted effective size; 1 if they have more even there."""
    log_weight = state.particles.log_weight
    wanted = target_ess * (log_weight > -jnp.inf).sum().astype(log_weight.dtype)

    def is_enough(rise: Array) -> Array:
        return effective_size(rise * log_weight) >= wanted

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = is_enough(middle)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    whole = 1 - state.temperature
    _, rise = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(whole), whole))
    return jnp.where(is_enough(whole), 1.0, state.temperature + rise)


def _coordinates(state: TemperedState, log_weights: Array, size: Array) -> tuple[Values, Values]:
    """Centre and spread of the named sites under the new weights; those before, if particles are too few."""
    weights = normalised(log_weights)
    centre, spread = {}, {}
    for name in state.centre:
        values = state.particles.u[name]
        mean = jnp.tensordot(weights, values, 1)
        deviation = jnp.sqrt(jnp.tensordot(weights, (values - mean) ** 2, 1))
        is_known = (size >= _FEWEST) & jnp.isfinite(deviation) & (deviation > 0)
        centre[name] = jnp.where(is_known, mean, state.centre[name])
        spread[name] = jnp.where(is_known, deviation, state.spread[name])
    return centre, spread


def _move_all(
    log_weight: Callable[[Values], Array],
    start: Start | None,
    settings: Settings,
    temperature: Array,
    centre: Values,
    spread: Values,
    rng_key: jax.Array,
    particles: Particle,
    step_size: Array,
) -> tuple[Particle, Array, Array]:
    """One trajectory of every particle, all of one length: the particles, their mean acceptance, the length."""
    length_key, keys_key = jax.random.split(rng_key)
    num_steps = num_steps_of(length_key, step_size, settings.max_steps)

    def point(e: Values, here: Particle) -> Point:
        value = here.log_start + temperature * here.log_weight
        gradient = jax.tree.map(lambda b, g: b + temperature * g, here.start_gradient, here.gradient)
        return Point(e, *over_coordinates(e, here.u, value, gradient, spread), here)

    def evaluate(e: Values) -> Point:
        u = {**e, **{name: centre[name] + spread[name] * e[name] for name in centre}}
        return point(e, _particle(log_weight, start, u))

    def move(key: Array, here: Particle) -> tuple[Particle, Array]:
        angle_key, move_key = jax.random.split(key)
        angle = step_size * jax.random.uniform(angle_key, (), step_size.dtype, 0.8, 1.0)
        e = {**here.u, **{name: (here.u[name] - centre[name]) / spread[name] for name in centre}}
        moved = hamiltonian_move(evaluate, move_key, point(e, here), angle, num_steps)
        return moved.point.beside, moved.accept_prob

    keys = jax.random.split(keys_key, len(particles.log_weight))
    particles, accept_prob = _each(move, settings.batch_size, keys, particles)
    return particles, accept_prob.mean(), num_steps


def _particle(log_weight: Callable[[Values], Array], start: Start | None, u: Values) -> Particle:
    value, gradient = jax.value_and_grad(log_weight)(u)
    if start is None:
        return Particle(u, value, gradient, jnp.zeros_like(value), jax.tree.map(jnp.zeros_like, gradient))
    return Particle(u, value, gradient, *jax.value_and_grad(start.log_weight)(u))


def _each(function: Callable, batch_size: int | None, *rows: PyTree) -> PyTree:
    """A function of one particle, of all of them, so many at once."""
    if batch_size is None:
        return jax.vmap(function)(*rows)
    return jax.lax.map(lambda row: function(*row), rows, batch_size=batch_size)
