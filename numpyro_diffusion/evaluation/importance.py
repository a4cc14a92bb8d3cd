r"""The importance-weighted (Jarzynski) estimate of log p(x^0), and how it converges in the number of trajectories.

    log p(x^0) >= E log (1/s) sum_{i=1..s} w_i,     w = p(x^{0:T}) / q(x^{1:T} | x^0)                     (Eq. 9)

For every size s = 1, 2, 4, ... and N the N trajectories are divided into groups of s, and the log of the average
weight is averaged over the complete groups: all sizes use all trajectories. By Jensen's inequality the estimates then
rise with s for every point, not only in expectation, along 1, 2, 4, ... whenever N is a power of two. The effective
sample size

    ESS = (sum w)^2 / sum w^2                                                                            in 1..N

says how many trajectories the average rests on: near 1, one of them carries it, and the estimate is still far below
log p(x^0).

References: Sohl-Dickstein et al. 2015, Eq. 9; Jarzynski 1997; Burda et al. 2016.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_integer_at_least, expected
from .._typing import Array, ArrayLike
from ..estimates.importance import log_trajectory_weight
from ._chunks import Chunk, Model, chunks, states_of
from .results import LogLikelihood

__all__ = ["ImportanceWeightedBound", "importance_weighted"]


@dataclasses.dataclass(frozen=True, eq=False)
class ImportanceWeightedBound(LogLikelihood):
    """The estimate with N trajectories, and with fewer.

    Attributes:
        per_point: the estimate with all N, shape (n,), nats.
        num_dimensions: numbers in one data point.
        sizes: 1, 2, 4, ... up to N, and N itself, shape (sizes,).
        per_point_by_size: shape (n, sizes), nats; the last column is ``per_point``.
        effective_sample_size: of the N weights of each point, shape (n,), in 1..N; of several states the least.
    """

    sizes: np.ndarray
    per_point_by_size: np.ndarray
    effective_sample_size: np.ndarray

    @property
    def by_size(self) -> list[LogLikelihood]:
        """The estimate with each of ``sizes`` trajectories."""
        return [LogLikelihood(column, self.num_dimensions) for column in self.per_point_by_size.T]


def importance_weighted(
    rng_key: jax.Array,
    model: Model,
    x: ArrayLike,
    *,
    num_trajectories: int = 64,
    chunk_size: int = 32,
    trajectories_per_chunk: int = 16,
) -> ImportanceWeightedBound:
    """The importance-weighted estimate of log p(x^0) for data: N * T network calls a point.

    Memory grows with ``chunk_size * trajectories_per_chunk`` only.

    Args:
        rng_key: JAX random key.
        model: parameters bound; a context for all points or one for each. Of a ``TransformedDistribution`` of a
            diffusion the nats are those of the data, Jacobian included. An event of several states (``to_event``) has
            the sum of theirs.
        x: data, shape (n, event...).
        num_trajectories: N >= 1.
        chunk_size: points that are in memory at once.
        trajectories_per_chunk: trajectories of each of these points that are in memory at once, a power of two.

    Raises:
        ValueError: for N < 1, a chunk of trajectories that is no power of two, data that do not match or lie outside of
            the support.

    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> model = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(1,)))
    >>> estimate = importance_weighted(jax.random.key(0), model, jnp.zeros((3, 1)), num_trajectories=6)
    >>> estimate.sizes.tolist(), round(estimate.nats, 2)
    ([1, 2, 4, 6], -0.92)

    References: Sohl-Dickstein et al. 2015, Eq. 9.
    """
    points = states_of(model, x)
    check_integer_at_least("num_trajectories", num_trajectories, 1, "An average needs 1 or more trajectories.")
    width = check_integer_at_least("trajectories_per_chunk", trajectories_per_chunk, 1, "Take a power of two.")
    if width & (width - 1):
        raise ValueError(expected("trajectories_per_chunk a power of two", width, "Groups of 1, 2, 4, ... fill it."))
    width = min(width, 1 << (num_trajectories.bit_length() - 1))
    estimates, effective = [], []
    for chunk in chunks(points, chunk_size):
        values, size = jax.device_get(_chunk(chunk, rng_key, num_trajectories, width))
        estimates.append(values[: chunk.size])
        effective.append(size[: chunk.size])
    by_size = points.of_points(np.concatenate(estimates)) + points.log_det[:, None]
    return ImportanceWeightedBound(
        per_point=by_size[:, -1],
        num_dimensions=points.num_dimensions,
        sizes=np.asarray(_sizes(num_trajectories)),
        per_point_by_size=by_size,
        effective_sample_size=np.concatenate(effective).astype(np.float64).reshape(-1, points.group).min(1),
    )


def _sizes(num_trajectories: int) -> list[int]:
    powers = [1 << level for level in range(num_trajectories.bit_length())]
    return powers if powers[-1] == num_trajectories else [*powers, num_trajectories]


class _Sums(NamedTuple):
    """Of each point: per size the log sums of the group that is not complete, the estimates of those that are."""

    open_groups: Array  # (points, sizes)
    estimates: Array  # (points, sizes)
    log_squares: Array  # (points,), log sum w^2


@functools.partial(jax.jit, static_argnames=("num_trajectories", "width"))
def _chunk(chunk: Chunk, key: jax.Array, num_trajectories: int, width: int) -> tuple[Array, Array]:
    """Estimates (points, sizes) and effective sample sizes (points,), ``width`` trajectories at a time."""
    sizes = _sizes(num_trajectories)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, chunk.positions)

    def log_weight(x_0: Array, context: ArrayLike | None, key: jax.Array, index: Array) -> Array:
        return log_trajectory_weight(jax.random.fold_in(key, index), chunk.chain.with_context(context), x_0)

    def add(sums: _Sums, first: Array) -> tuple[_Sums, None]:
        index = first + jnp.arange(width)
        weights = jax.vmap(jax.vmap(log_weight, (None, None, None, 0)), (0, 0, 0, None))(
            chunk.x, chunk.chain.context, keys, index
        )
        weights = jnp.where(index < num_trajectories, weights, -jnp.inf)
        open_groups, estimates = [], []
        for level, size in enumerate(sizes):
            if size <= width:
                group = jax.nn.logsumexp(weights.reshape(len(weights), -1, size), axis=-1) - math.log(size)
                is_complete = first + size * (1 + jnp.arange(width // size)) <= num_trajectories
                estimates.append(jnp.where(is_complete, group, 0.0).sum(-1))
                open_groups.append(sums.open_groups[:, level])
            else:
                group = jnp.logaddexp(sums.open_groups[:, level], jax.nn.logsumexp(weights, axis=-1))
                reached = jnp.minimum(first + width, num_trajectories)
                is_complete = reached % size == 0
                estimates.append(jnp.where(is_complete, group - math.log(size), 0.0))
                open_groups.append(jnp.where(is_complete, -jnp.inf, group))
        squares = jnp.logaddexp(sums.log_squares, jax.nn.logsumexp(2 * weights, axis=-1))
        return _Sums(jnp.stack(open_groups, -1), sums.estimates + jnp.stack(estimates, -1), squares), None

    dtype = jax.eval_shape(
        jax.vmap(log_weight, (0, 0, 0, None)), chunk.x, chunk.chain.context, keys, jnp.zeros((), int)
    ).dtype
    empty = jnp.full((len(chunk.x), len(sizes)), -jnp.inf, dtype)
    start = _Sums(empty, jnp.zeros(empty.shape, dtype), empty[:, 0])
    sums, _ = jax.lax.scan(add, start, jnp.arange(0, num_trajectories, width))
    estimates = sums.estimates / jnp.asarray([num_trajectories // size for size in sizes], dtype)
    log_total = estimates[:, -1] + math.log(num_trajectories)
    return estimates, jnp.exp(2 * log_total - sums.log_squares)
