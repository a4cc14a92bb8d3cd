r"""Hamiltonian Monte Carlo against a standard normal: pi(z) proportional to N(z; 0, I) w(z).

The Hamiltonian is |z|^2 / 2 + |p|^2 / 2 - log w(z). One step of angle h, with g = grad log w:

    p += h/2 g(z);     (z, p) <- (z cos h + p sin h, p cos h - z sin h);     p += h/2 g(z)

The rotation is the exact flow of the standard normal. It leaves |z|^2 + |p|^2 as it is, so that the error of a
trajectory is

    Delta H = sum over kicks of (h/2 p.g + h^2/8 |g|^2)  -  (log w(z') - log w(z)),

in which no sum over all coordinates is subtracted from another: single precision is enough in any number of them. Where
w is constant every h is accepted, and h = pi/2 makes a fresh draw, in any number of coordinates: only w bounds it.

A step is reversible and keeps the volume whatever g is. So the draw is one of pi even if g is not the gradient.

Where w is a product over elements, each of coordinates of its own, a trajectory is one of every element, and each is
accepted on its own: a step's size does not fall with their number.

References: Neal 2011, Section 5 (splitting); Shahbaba et al. 2014; Beskos et al. 2011.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from .._typing import Array, PyTree

__all__ = ["MAX_ANGLE", "Move", "Point", "hamiltonian_move", "num_steps_of", "over_coordinates"]

MAX_ANGLE = math.pi / 2  # a quarter of a turn is a fresh draw

Evaluate: TypeAlias = Callable[[PyTree], "Point"]


class Point(NamedTuple):
    """Where a chain is.

    Attributes:
        z: a pytree of arrays, of shape (E..., ...).
        log_weight: log w(z) by element, nats, shape E; () where all coordinates go together.
        gradient: of log w, a tree as z.
        beside: anything else that is known there, arrays of shape (E..., ...).
    """

    z: PyTree
    log_weight: Array
    gradient: PyTree
    beside: PyTree = None


class Move(NamedTuple):
    """What a trajectory came to, by element.

    Attributes:
        point: where the chain is now.
        accept_prob: of the trajectory's end.
        energy_error: Delta H, nats; NaN or +inf where the trajectory met a density of 0 or NaN.
        is_accepted: whether the end was taken.
    """

    point: Point
    accept_prob: Array
    energy_error: Array
    is_accepted: Array


def hamiltonian_move(evaluate: Evaluate, rng_key: jax.Array, point: Point, angle: Array, num_steps: Array) -> Move:
    """One trajectory of ``num_steps`` steps, accepted or not.

    Args:
        evaluate: the point at a z.
        rng_key: randomness.
        point: the start.
        angle: h, radians.
        num_steps: a whole number >= 1; it may be traced.
    """
    momentum_key, accept_key = jax.random.split(rng_key)
    momentum = _standard_normal(momentum_key, point.z)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    num_axes = point.log_weight.ndim

    def kick(momentum: PyTree, gradient: PyTree) -> tuple[PyTree, Array]:
        gained = _sum(lambda p, g: 0.5 * angle * p * g + 0.125 * angle**2 * g * g, momentum, gradient, num_axes)
        return jax.tree.map(lambda p, g: p + 0.5 * angle * g, momentum, gradient), gained

    def step(_: Array, carry: tuple[Point, PyTree, Array]) -> tuple[Point, PyTree, Array]:
        here, momentum, error = carry
        momentum, before = kick(momentum, here.gradient)
        z = jax.tree.map(lambda z, p: cos * z + sin * p, here.z, momentum)
        momentum = jax.tree.map(lambda z, p: cos * p - sin * z, here.z, momentum)
        here = evaluate(z)
        momentum, after = kick(momentum, here.gradient)
        return here, momentum, error + before + after

    start = (point, momentum, jnp.zeros_like(point.log_weight))
    end, _, kicks = jax.lax.fori_loop(0, num_steps, step, start)
    energy_error = kicks - (end.log_weight - point.log_weight)
    # A start of density 0 is left for any end that has one.
    is_possible = jnp.isfinite(end.log_weight) & ~jnp.isnan(energy_error)
    log_accept = jnp.where(is_possible, jnp.minimum(-energy_error, 0.0), -jnp.inf)
    uniform = jax.random.uniform(accept_key, log_accept.shape, log_accept.dtype)
    is_accepted = jnp.log(uniform) < log_accept
    taken = jax.tree.map(lambda new, old: jnp.where(_for_axes_of(new, is_accepted), new, old), end, point)
    return Move(taken, jnp.exp(log_accept), energy_error, is_accepted)


def num_steps_of(rng_key: jax.Array, angle: Array, most: int) -> Array:
    """A random number of steps of about a quarter of a turn in the mean, uniform on 1 .. 2 L - 1, L = ceil(pi / 2h).

    A fixed length resonates with the posterior's own periods.

    Args:
        rng_key: randomness.
        angle: h, radians.
        most: the largest L.
    """
    mean = jnp.clip(jnp.ceil(MAX_ANGLE / angle), 1, most).astype(int)
    return jax.random.randint(rng_key, (), 1, 2 * mean)


def over_coordinates(
    e: dict[str, Array], u: dict[str, Array], log_weight: Array, gradient: dict[str, Array], spread: dict[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """The log weight over N(e; 0, I), but for a constant, and its gradient, from those over N(u; 0, I).

    Args:
        e: coordinates by site.
        u: values by site: centre + spread e for the sites of ``spread``, e for the others.
        log_weight: log w(u) over N(u; 0, I), nats.
        gradient: of it, in u.
        spread: by site.
    """
    slope = dict(gradient)
    for name, scale in spread.items():
        log_weight = log_weight + 0.5 * ((e[name] - u[name]) * (e[name] + u[name])).sum()
        slope[name] = scale * (gradient[name] - u[name]) + e[name]
    return log_weight, slope


def _standard_normal(rng_key: jax.Array, like: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(rng_key, len(leaves))
    normal = [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, normal)


def _sum(function: Callable[[Array, Array], Array], first: PyTree, second: PyTree, num_axes: int) -> Array:
    """Over all axes but the first."""
    sums = jax.tree.map(lambda a, b: function(a, b).sum(tuple(range(num_axes, jnp.ndim(a)))), first, second)
    return sum(jax.tree.leaves(sums), jnp.zeros(()))


def _for_axes_of(values: Array, by_element: Array) -> Array:
    return by_element.reshape(by_element.shape + (1,) * (values.ndim - by_element.ndim))
