"""Any number of points through one compiled function, in equal chunks.

Every point has its own key, ``fold_in(key, index of the point)``, so that a result depends neither on the size of the
chunks nor on which other points there are. The last chunk is filled up with copies of the last point, which are masked.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .._checks import check_integer_at_least, check_trailing_shape, expected
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from ..diffusion import Diffusion
from ..wrappers import wrapped_diffusion

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
        chain: the model's, with a context for each of the points if it has one.
        x: shape (points, event...).
        positions: of each point in the data, shape (points,).
        size: how many of the points are no filling.
    """

    chain: ReverseChain
    x: Array
    positions: Array
    size: int


class Points(NamedTuple):
    """Data as a chain's states, and what makes log likelihoods of the states those of the data.

    Attributes:
        model: of the states.
        states: shape (n, state event...).
        log_det: -log |det dx/ds| of each point, to be added, shape (n,), nats; 0 without transforms.
        num_dimensions: numbers in one data point.
    """

    model: Diffusion | ReverseChain
    states: np.ndarray
    log_det: np.ndarray
    num_dimensions: int


def states_of(model: Model, x: ArrayLike) -> Points:
    """The states of data, checked against the model.

    Raises:
        TypeError: for a model that is no diffusion, alone or inside of transforms with an inverse.
        ValueError: as :func:`points_of`; for points outside of the transforms' support, with the first; for a
            transformed model whose data point is several states.
    """
    size = max(1, int(np.prod(jnp.shape(x)[1:])))
    wrapped = wrapped_diffusion(model)
    if wrapped is None or not wrapped.transforms:
        states = points_of(model, x)
        return Points(model, states, np.zeros(len(states)), size)
    transformed: Any = model
    check_trailing_shape("x", x, transformed.event_shape, "Pass data of shape (n, event...).")
    if wrapped.batch_shape != transformed.batch_shape:
        raise ValueError(
            expected(
                "a transformed diffusion of which a data point is one state",
                f"states of batch_shape {wrapped.batch_shape} in a model of batch_shape {transformed.batch_shape}",
                "Score each of them by itself: drop to_event.",
            )
        )
    if wrapped.diffusion.kernel.is_discrete:
        raise TypeError(
            expected(
                "real states inside of the transforms",
                type(wrapped.diffusion.kernel).__name__,
                "A probability has no Jacobian: score the states by the Diffusion itself.",
            )
        )
    states = wrapped.states_of(x)
    log_det = -np.asarray(wrapped.log_abs_det(jnp.asarray(states), transformed.event_dim), np.float64)
    base: Any = wrapped.diffusion.expand(wrapped.batch_shape)
    return Points(base, points_of(base, states), np.broadcast_to(log_det, len(states)), size)


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
    batch_shape = check_trailing_shape("x", x, model.transition.event_shape, "Pass data of shape (n, event...).")
    if len(batch_shape) != 1 or batch_shape[0] < 1:
        raise ValueError(
            expected(
                f"data of shape (n, *{model.transition.event_shape}), n >= 1",
                f"shape {jnp.shape(x)}",
                "Reshape it to one axis of points.",
            )
        )
    if model.batch_shape not in ((), (1,), batch_shape):
        raise ValueError(
            expected(
                f"a context for each of the {batch_shape[0]} points, or one for all",
                f"a model of batch_shape {model.batch_shape}",
                "Bind one context for each row of x.",
            )
        )
    model.kernel.check_data("x", x)
    return np.asarray(x)


def chunks(model: Diffusion | ReverseChain, x: np.ndarray, chunk_size: int) -> Iterator[Chunk]:
    """The data in chunks of one size, at most ``chunk_size``."""
    size = min(check_integer_at_least("chunk_size", chunk_size, 1, "It counts points that are in memory."), len(x))
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
    """A key for every point and draw, shape (points, num_draws)."""
    by_point = jax.vmap(jax.random.fold_in, (None, 0))(key, chunk.positions)
    return jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_draws)))(by_point)


def over_points(function: Callable[[ReverseChain, Array, Array], Any], chunk: Chunk, drawn: Array) -> Any:
    """``function(chain, x, one of drawn)`` for all points and draws.

    Args:
        function: of one point, the chain with its context, and one of its draws or keys.
        chunk: the points.
        drawn: leading dimensions (points, num_draws), which the result has too.
    """

    def of_one(x: Array, context: ArrayLike | None, one: Array) -> Any:
        return function(chunk.chain.with_context(context), x, one)

    return jax.vmap(jax.vmap(of_one, (None, None, 0)))(chunk.x, chunk.chain.context, drawn)


def moments_over_points(values: Array, chunk: Chunk) -> tuple[Array, Array]:
    """Mean and sum of squared deviations of ``values`` (points,) over the chunk's points, without the filling."""
    weights = (jnp.arange(len(values)) < chunk.size).astype(values.dtype)
    mean = (weights * values).sum() / chunk.size
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
