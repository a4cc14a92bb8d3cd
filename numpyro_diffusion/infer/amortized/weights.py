r"""Draws of the amortised posterior and the weights that correct them, exactly, for a model with a likelihood.

x^0 has no density under q(theta | y), a path x^{0:T} has. With u the coordinates of x^0, C their change of variables,
and q_F(x^{1:T} | x^0) the forward chain, the paths' target is p(u, y) q_F(x^{1:T} | x^0), whose integral is p(y), and

    log w = log p(u, y) + log |C| - log R,     R = p_R(x^{0:T}) / q_F(x^{1:T} | x^0),     E w = p(y).

The network, however good or bad, is in R alone, so that E w = p(y) holds for any. R is a guess of the density of x^0 by
the one path that made it. K - 1 more paths drawn by the forward chain from the same x^0 make a better one,

    log w = log p(u, y) + log |C| - log (R_1 + ... + R_K) / K,

whose mean is p(y), too: with the paths in random order both sides have the same density, that of the mixture of K laws
in each of which another path is the one that the chain drew. K is how often theta is re-noised, plus one.

In the chain's noises z the same target is N(z; 0, I) w(z), with one path: a Hamiltonian or tempered move needs no more.

References: Sohl-Dickstein et al. 2015, Eq. 9 (R); Burda et al. 2016; Andrieu, Roberts 2009 (an estimate in its place).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._typing import Array, PyTree
from ..._weights import log_mean_exp
from ...chains import ReverseChain
from ...estimates import Estimator
from ...estimates.importance import log_path_ratio, log_trajectory_weight
from ...model.simulator import Simulator
from .parts import Bound, split_by_site, told

__all__ = [
    "Data",
    "data_set",
    "draw_noise",
    "draw_values",
    "draw_values_of_each",
    "estimate_log_prob",
    "log_weight_of_noise",
    "weighted_values",
    "weighted_values_of_each",
]

_DRAWS_AT_ONCE = 500
Values = dict[str, Array]


class Data(NamedTuple):
    """A data set; several have one more axis in front.

    Attributes:
        values: by site.
        seen: booleans of their shapes, False where a number is missing; None where none is.
    """

    values: Values
    seen: Values | None


@partial(jax.jit, static_argnums=0)
def draw_values(simulator: Simulator, bounds: tuple[Bound, ...], keys: Array) -> Values:
    """Values by site, as many as keys."""
    return _in_batches(partial(_draw, simulator, bounds), keys, _DRAWS_AT_ONCE)


@partial(jax.jit, static_argnums=0)
def draw_values_of_each(simulator: Simulator, bounds: tuple[Bound, ...], keys: Array) -> Values:
    """Values by site for each of n data sets, which lead in what is bound and in the keys; shape (n, keys, ...)."""

    def draw(row: tuple[Array, Array]) -> Values:
        index, key = row
        return _draw(simulator, tuple(bound.at(index) for bound in bounds), key)

    return _of_each(draw, keys, _DRAWS_AT_ONCE)


@partial(jax.jit, static_argnums=(0, 4))
def weighted_values(
    simulator: Simulator, bounds: tuple[Bound, ...], y: Data, keys: Array, num_paths: int
) -> tuple[Values, Array]:
    """Values by site and log w, as many as keys; K = ``num_paths`` for each."""
    weigh = partial(_weigh, simulator, bounds, y, num_paths=num_paths)
    return _in_batches(weigh, keys, max(1, _DRAWS_AT_ONCE // num_paths))


@partial(jax.jit, static_argnums=(0, 4))
def weighted_values_of_each(
    simulator: Simulator, bounds: tuple[Bound, ...], y: Data, keys: Array, num_paths: int
) -> tuple[Values, Array]:
    """Values by site and log w for each of n data sets, which lead in what is bound, in y and in the keys."""

    def weigh(row: tuple[Array, Array]) -> tuple[Values, Array]:
        index, key = row
        bound, data = data_set(bounds, y, index)
        return _weigh(simulator, bound, data, key, num_paths=num_paths)

    return _of_each(weigh, keys, max(1, _DRAWS_AT_ONCE // num_paths))


@jax.jit
def data_set(bounds: tuple[Bound, ...], y: Data, index: Array) -> tuple[tuple[Bound, ...], Data]:
    """One of several data sets."""
    return tuple(bound.at(index) for bound in bounds), jax.tree.map(lambda leaf: leaf[index], y)


def draw_noise(key: Array, chain: ReverseChain) -> Array:
    """The noises of a path."""
    return jax.random.normal(key, chain.event_shape)


@partial(jax.jit, static_argnums=0)  # engines look at a model many times: it is traced once
def log_weight_of_noise(simulator: Simulator, bound: Bound, y: Data, noise: Array) -> tuple[Values, Array]:
    """Values by site and log w(z), for a posterior of one part, of real numbers."""
    walk = _Walk((bound,))
    chain = bound.chain(walk.before)
    path = chain.path_from_noise(noise)
    walk.add(bound, path[0])
    values, log_volume = simulator.values_and_log_volume(walk.coordinates)
    log_joint = simulator.log_joint(values, *y)
    return values, log_joint + log_volume + walk.log_volume - log_path_ratio(chain, path)


@partial(jax.jit, static_argnums=(0, 4))
def estimate_log_prob(
    simulator: Simulator, bounds: tuple[Bound, ...], values: Values, keys: Array, estimator: Estimator
) -> Array:
    """A named estimate of log q(theta | y) of values by site, each with a leading axis, nats; -inf off the support."""

    def of_one(values: Values, key: Array) -> Array:
        coordinates = {site.name: site.coordinates(values[site.name]) for site in simulator.latent}
        walk = _Walk(bounds)
        total = jnp.zeros(())
        for index, bound in enumerate(bounds):
            joined = jnp.concatenate([coordinates[name] for name, _ in bound.part.sites])
            x = bound.state(joined, walk.before)
            total = total + estimator(jax.random.fold_in(key, index), bound.chain(walk.before), x)
            walk.add(bound, x)
        total = total - walk.log_volume - simulator.values_and_log_volume(coordinates)[1]
        # On a boundary coordinates are infinite: a path of finite numbers never ends there.
        is_inside = [
            site.contains(values[site.name]) & jnp.isfinite(coordinates[site.name]).all() for site in simulator.latent
        ]
        return jnp.where(jnp.stack(is_inside).all(), total, -jnp.inf)

    return _in_batches(lambda both: of_one(*both), (values, keys), _DRAWS_AT_ONCE)


def _draw(simulator: Simulator, bounds: tuple[Bound, ...], key: Array) -> Values:
    walk = _Walk(bounds)
    for index, bound in enumerate(bounds):
        walk.add(bound, bound.chain(walk.before).sample_last(jax.random.fold_in(key, index)))
    return simulator.values_and_log_volume(walk.coordinates)[0]


def _weigh(
    simulator: Simulator, bounds: tuple[Bound, ...], y: Data, key: Array, *, num_paths: int
) -> tuple[Values, Array]:
    walk = _Walk(bounds)
    for index, bound in enumerate(bounds):
        part_key = jax.random.fold_in(key, index)
        chain = bound.chain(walk.before)
        if chain.kernel.is_discrete:
            path = chain.sample(part_key)
        else:
            path = chain.path_from_noise(draw_noise(part_key, chain))
        walk.add(bound, path[0])
        walk.log_ratio += _log_ratio(jax.random.fold_in(part_key, 1), chain, path, num_paths)
    values, log_volume = simulator.values_and_log_volume(walk.coordinates)
    log_weight = simulator.log_joint(values, *y) + log_volume + walk.log_volume - walk.log_ratio
    return values, log_weight


def _of_each(function: Callable[[Any], PyTree], keys: Array, size: int) -> PyTree:
    """A function of a data set's number and a key, for keys with both in front, so many at once."""
    num_sets, num_draws = keys.shape[:2]
    rows = jnp.repeat(jnp.arange(num_sets), num_draws), keys.reshape((-1, *keys.shape[2:]))
    found = _in_batches(function, rows, size)
    return jax.tree.map(lambda leaf: leaf.reshape((num_sets, num_draws, *leaf.shape[1:])), found)


def _in_batches(function: Callable[[Any], PyTree], rows: PyTree, size: int) -> PyTree:
    """A function of one row, of all, so many at once: the last batch is filled up rather than compiled by itself."""
    count = len(jax.tree.leaves(rows)[0])
    size = min(size, count)
    fill = jnp.arange(-(-count // size) * size) % count
    found = jax.lax.map(function, jax.tree.map(lambda leaf: leaf[fill], rows), batch_size=size)
    return jax.tree.map(lambda leaf: leaf[:count], found)


class _Walk:
    """One draw on its way through the parts.

    Attributes:
        before: what the parts so far tell the next.
        coordinates: by site.
        log_volume: of the parts' changes of variables, nats.
        log_ratio: log R of the parts so far, nats.
    """

    def __init__(self, bounds: tuple[Bound, ...]) -> None:
        self.before = bounds[0].embedded[:0]
        self.coordinates: dict[str, Array] = {}
        self.log_volume: Any = jnp.zeros(())
        self.log_ratio: Any = jnp.zeros(())

    def add(self, bound: Bound, x: Array) -> None:
        """The state x^0 of a part."""
        found = bound.coordinates(x, self.before)
        self.coordinates.update(split_by_site(found, bound.part.sites))
        self.log_volume = self.log_volume + bound.log_volume()
        word = told(x, bound.part.kernel.num_states).astype(self.before.dtype)
        self.before = jnp.concatenate([self.before, word])


def _log_ratio(key: Array, chain: ReverseChain, path: Array, num_paths: int) -> Array:
    """Log (R_1 + ... + R_K) / K, R_1 of the path."""
    first = log_path_ratio(chain, path)
    if num_paths == 1:
        return first
    keys = jax.random.split(key, num_paths - 1)
    others = jax.vmap(lambda one: log_trajectory_weight(one, chain, path[0]))(keys)
    return log_mean_exp(jnp.concatenate([first[None], others]))
