"""Any number of points through one compiled function, in equal chunks.

Every state has its own key, ``fold_in(key, index of the state)``, so that a result depends neither on the size of the
chunks nor on which other points there are. The last chunk is filled up with copies of the last state, which are masked.

A point is one state, or several independent ones that ``to_event`` made one event. Its log likelihood is the sum of
theirs, and so is a bound of it: averages of weights are taken for each state, which bounds no worse than averages of
their products.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .._checks import check_integer_at_least, check_trailing_shape, expected
from .._typing import Array, ArrayLike, Shape
from ..chains import ReverseChain
from ..diffusion import Diffusion
from ..wrappers import WrappedDiffusion, wrapped_diffusion

__all__ = [
    "Chunk",
    "Moments",
    "Points",
    "chunks",
    "moments_over_points",
    "over_points",
    "point_keys",
    "points_of",
    "states_of",
]

# A Diffusion, a TransformedDistribution of one, or a ReverseChain.
Model: TypeAlias = dist.Distribution


class Chunk(NamedTuple):
    """A slice of the data, as compiled functions take it.

    Attributes:
        chain: the model's, with a context for each of the states if it has one.
        x: shape (states, event...).
        positions: of each state in the data, shape (states,).
        size: how many of the states are no filling.
    """

    chain: ReverseChain
    x: Array
    positions: Array
    size: int


class Points(NamedTuple):
    """Data as a chain's states, and what makes log likelihoods of the states those of the data.

    Attributes:
        model: of the states.
        states: shape (n * group, state event...), those of a point one after the other.
        log_det: -log |det dx/ds| of each point, to be added, shape (n,), nats; 0 without transforms.
        num_dimensions: numbers in one data point.
        group: states of one point.
    """

    model: Diffusion | ReverseChain
    states: np.ndarray
    log_det: np.ndarray
    num_dimensions: int
    group: int = 1

    def of_points(self, values: np.ndarray) -> np.ndarray:
        """Sums over the states of each point: (n * group, ...) to (n, ...), in float64."""
        return np.asarray(values, np.float64).reshape(-1, self.group, *np.shape(values)[1:]).sum(1)


def states_of(model: Model, x: ArrayLike) -> Points:
    """The states of data, checked against the model.

    Raises:
        TypeError: for a model that is no diffusion, alone or inside of ``expand``, ``to_event`` and transforms with an
            inverse; for bits inside of transforms.
        ValueError: as :func:`points_of`; for points outside of the transforms' support, with the first.
    """
    size = max(1, int(np.prod(jnp.shape(x)[1:])))
    wrapped = wrapped_diffusion(model)
    several = () if wrapped is None else wrapped.batch_shape[len(model.batch_shape) :]
    if wrapped is None or not (wrapped.transforms or several):
        bare: Any = model if wrapped is None else wrapped.diffusion.expand(wrapped.batch_shape)
        states = points_of(bare, x)
        return Points(bare, states, np.zeros(len(states)), size)
    _check_points(x, model.event_shape, model.batch_shape)
    if wrapped.transforms and wrapped.diffusion.kernel.is_discrete:
        raise TypeError(
            expected(
                "real states inside of the transforms",
                type(wrapped.diffusion.kernel).__name__,
                "A probability has no Jacobian: score the states by the Diffusion itself.",
            )
        )
    states = np.asarray(x)
    count = len(states)
    log_det = np.zeros(count)
    if wrapped.transforms:
        states = wrapped.states_of(x)
        log_det = log_det - np.asarray(wrapped.log_abs_det(jnp.asarray(states), model.event_dim), np.float64)
    base = _of_states(wrapped, count, several)
    group = math.prod(several)
    flat = states.reshape(count * group, *wrapped.diffusion.event_shape)
    return Points(base, points_of(base, flat), log_det, size, group)


def _check_points(x: ArrayLike, event_shape: Shape, model_batch_shape: Shape) -> None:
    """Data of shape (n, event...), n >= 1, for a model with one distribution for all points or one for each."""
    batch_shape = check_trailing_shape("x", x, event_shape, "Pass data of shape (n, event...).")
    if len(batch_shape) != 1 or batch_shape[0] < 1:
        cure = "Reshape it to one axis of points."
        raise ValueError(expected(f"data of shape (n, *{event_shape}), n >= 1", f"shape {jnp.shape(x)}", cure))
    if model_batch_shape not in ((), (1,), batch_shape):
        raise ValueError(
            expected(
                f"a context for each of the {batch_shape[0]} points, or one for all",
                f"a model of batch_shape {model_batch_shape}",
                "Bind one context for each row of x.",
            )
        )


def _of_states(wrapped: WrappedDiffusion, count: int, several: Shape) -> Diffusion:
    """The distribution of all states in one row, each with its context."""
    inner = wrapped.diffusion
    if inner.context is None:
        return Diffusion(inner.kernel, inner.transition)
    shape = inner.transition.context_shape or ()
    context = jnp.broadcast_to(inner.context, (*wrapped.batch_shape, *shape))
    context = jnp.broadcast_to(context.reshape(-1, *several, *shape), (count, *several, *shape))
    return Diffusion(inner.kernel, inner.transition, context=context.reshape(-1, *shape))


def points_of(model: Diffusion | ReverseChain, x: ArrayLike) -> np.ndarray:
    """The data as an array on the host, shape (n, event...), checked against the model.

    Raises:
        TypeError: for another model.
        ValueError: for a chain that stops early, for no points, for shapes that do not match, for data outside of the
            kernel's support.
    """
    # A tilted chain is a ReverseChain too, but its p(x^0) is not what these estimates are for.
    if type(model) not in (Diffusion, ReverseChain):
        raise TypeError(expected("a Diffusion or a ReverseChain", repr(model), "Pass fit.distribution(name)."))
    if isinstance(model, ReverseChain) and model.stop:
        raise ValueError(expected("a chain down to x^0", f"stop = {model.stop}", "Build it with stop=0."))
    _check_points(x, model.transition.event_shape, model.batch_shape)
    model.kernel.check_data("x", x)
    return np.asarray(x)


def chunks(points: Points, chunk_size: int) -> Iterator[Chunk]:
    """The states in chunks of one size, whole points, at most ``chunk_size`` states if a point has no more."""
    model, x = points.model, points.states
    size = min(check_integer_at_least("chunk_size", chunk_size, 1, "It counts points that are in memory."), len(x))
    size = max(size // points.group, 1) * points.group
    context = None
    if model.context is not None:
        wanted = (len(x), *(model.transition.context_shape or ()))
        context = np.broadcast_to(np.asarray(model.context), wanted)
    for start in range(0, len(x), size):
        index = np.minimum(np.arange(start, start + size), len(x) - 1)
        rows = None if context is None else jnp.asarray(context[index])
        chain = ReverseChain(model.kernel, model.transition, context=rows)
        yield Chunk(chain, jnp.asarray(x[index]), jnp.asarray(index), min(size, len(x) - start))


def point_keys(key: jax.Array, chunk: Chunk, num_draws: int) -> jax.Array:
    """A key for every state and draw, shape (states, num_draws)."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # of jax.random.PRNGKey, as NumPyro's examples have it
        key = jax.random.wrap_key_data(key)
    by_point = jax.vmap(jax.random.fold_in, (None, 0))(key, chunk.positions)
    return jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_draws)))(by_point)


def over_points(function: Callable[[ReverseChain, Array, Array], Any], chunk: Chunk, drawn: Array) -> Any:
    """``function(chain, x, one of drawn)`` for all states and draws.

    Args:
        function: of one state, the chain with its context, and one of its draws or keys.
        chunk: the states.
        drawn: leading dimensions (states, num_draws), which the result has too.
    """

    def of_one(x: Array, context: ArrayLike | None, one: Array) -> Any:
        return function(chunk.chain.with_context(context), x, one)

    return jax.vmap(jax.vmap(of_one, (None, None, 0)))(chunk.x, chunk.chain.context, drawn)


def moments_over_points(values: Array, chunk: Chunk, group: int = 1) -> tuple[Array, Array]:
    """Mean and sum of squared deviations over the chunk's points, without the filling.

    Args:
        values: of the states, shape (states,); a point has the sum of its states'.
        chunk: the states.
        group: states of one point.
    """
    values = values.reshape(-1, group).sum(1)
    size = chunk.size // group
    weights = (jnp.arange(len(values)) < size).astype(values.dtype)
    mean = (weights * values).sum() / size
    return mean, (weights * (values - mean) ** 2).sum()


class Moments:
    """Means and standard errors of arrays of numbers over all points, gathered in float64 chunk by chunk."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, np.zeros(()), np.zeros(())

    def add(self, count: int, mean: ArrayLike, squares: ArrayLike) -> None:
        """Merge those of ``count`` more points (Chan et al. 1979)."""
        total = self.count + count
        change = np.asarray(mean, np.float64) - self.mean
        self.mean = self.mean + change * (count / total)
        self._squares = self._squares + np.asarray(squares, np.float64) + change**2 * (self.count * count / total)
        self.count = total

    @property
    def standard_error(self) -> np.ndarray:
        """Of the mean; infinite for one point."""
        if self.count < 2:
            return np.full(np.shape(self.mean), np.inf)
        return np.sqrt(self._squares / (self.count - 1) / self.count)
