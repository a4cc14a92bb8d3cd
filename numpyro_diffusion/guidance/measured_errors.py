r"""The covariance of a network's errors from draws: what stands out from the noise of a sample, and nothing else.

A sample covariance of n draws of d coordinates has d^2 / 2 numbers, each off by 1 / sqrt(n), and guidance that believes
them all is worse than guidance by a few of its directions. In units of the coordinates' standard deviations, let b be
the mean of the eigenvalues of the bulk. Those above

    b (1 + sqrt(g))^2,      g = d / n

stand out; each l b of them is the image of a true eigenvalue e b, l = e + g e / (e - 1), whose direction has the square
c = (1 - g / (e - 1)^2) / (1 + g / (e - 1)) of its cosine with the true one. It is kept as e / (c + e (1 - c)), the best
for a log density. The rest is the diagonal that is left; in its units the same is done once more, for directions that
are those of few coordinates.

Where coordinates stand on a grid, the same is done after cosines along its axes (see :mod:`.covariances`), for
errors of half of the draws, and the form that the other half finds more likely is kept. Colours are turned to their
principal axes.

References: Donoho, Gavish, Johnstone 2018, Optimal shrinkage of eigenvalues in the spiked covariance model (the formula
for Stein's loss).
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from .._checks import check_integer_at_least, expected, is_concrete
from .._small_matrices import symmetric
from .._typing import Array, Shape
from ..chains import ReverseChain
from .base import check_real
from .covariances import ErrorCovariance, along_axes

__all__ = ["error_covariance"]

_SECONDS_BEFORE_BAR = 5.0
_NUM_ROUNDS = 2  # of directions, in units of what the last ones left: more change nothing
_NUM_ROUNDS_OF_BULK = 6  # it has settled by then
_NUM_LEVELS = 8  # at which the forms are compared
_LEAST = 1e-4  # of a coordinate's variance, that has no correlation


def error_covariance(
    rng_key: jax.Array,
    chain: ReverseChain,
    *,
    num_draws: int = 4000,
    rank: int = 64,
    image_shape: Shape | Literal["auto"] | None = "auto",
    batch_size: int = 250,
    progress_bar: bool = True,
) -> ErrorCovariance:
    """The covariance of a network's errors, over draws of the prior itself.

    Args:
        rng_key: of the draws.
        chain: ``prior.chain``, of one x, without a batch; with a context, that context's.
        num_draws: of x^0, each noised once for each t: T + T network calls for each.
        rank: the largest number q of directions that are kept beside the diagonal; all are, where there are no more.
        image_shape: (height, width) or (height, width, colours) of a picture, (length,) of a series, whose errors may
            have nearly the same correlations everywhere. By default that of an x with two or three axes. None: no grid.
        batch_size: draws at once.
        progress_bar: show one over batches, if it takes longer than five seconds.

    Raises:
        TypeError: for a kernel that is not Gaussian.
        ValueError: for a chain with a batch, counts out of range, an image_shape of another size than x, or a network
            whose errors are not finite.
    """
    check_real(chain.kernel, "error_covariance", "Bits have no covariance of this kind.")
    if chain.batch_shape:
        cure = "Pass the chain of one x: prior.chain before any plate."
        raise ValueError(expected("a chain of one x", f"batch_shape {chain.batch_shape}", cure))
    check_integer_at_least("num_draws", num_draws, 2, "A covariance needs some; 20 for each coordinate are good.")
    check_integer_at_least("rank", rank, 1, "It is the number of directions.")
    check_integer_at_least("batch_size", batch_size, 1, "It bounds the memory.")
    grid = _grid(image_shape, chain.state_shape)
    size = min(batch_size, -(-num_draws // 2))
    batches = -(-num_draws // (2 * size)) * 2  # two halves
    keys = jax.random.split(rng_key, batches)
    # A chain that is traced has no batches to wait for.
    is_shown = progress_bar and is_concrete((rng_key, chain))
    chain = jax.tree.map(jnp.asarray, chain)  # on the device once, and not with every batch
    halves = [jnp.zeros(()), jnp.zeros(())]
    bar = tqdm(keys, desc="errors of the network", disable=not is_shown, delay=_SECONDS_BEFORE_BAR)
    for i, key in enumerate(bar):
        halves[i % 2] = halves[i % 2] + _squares(chain, key, size)
        if is_shown:
            jax.block_until_ready(halves)
    first, second = (half / (batches // 2 * size) for half in halves)
    _check_varying(first + second)
    count = batches * size
    axes: tuple[Array, ...] = ()
    # Which form fits cannot be asked of numbers that are traced.
    if grid is not None and is_concrete(first):
        axes = _better_axes(first, second, count // 2, rank, grid)
    found = _fitted(symmetric(first + second) / 2, axes, count, rank)
    if not is_concrete(found.factor):
        return found
    is_used = np.asarray((found.factor != 0).any((0, 1)))
    return ErrorCovariance(found.factor[..., is_used if is_used.any() else [0]], found.diagonal, found.scale, axes)


def _check_varying(covariances: Array) -> None:
    is_zero = np.asarray((covariances == 0).all((1, 2))) if is_concrete(covariances) else np.zeros(1, bool)
    if is_zero.any():
        got = f"none in all draws at t = {1 + int(is_zero.argmax())}"
        raise ValueError(expected("a network with errors at every t", got, "Is the prior one point? It needs no C_t."))


def _grid(image_shape: Shape | str | None, state_shape: Shape) -> Shape | None:
    if image_shape is None:
        return None
    if isinstance(image_shape, str):
        if image_shape != "auto":
            raise ValueError(expected("a shape, None or 'auto' as image_shape", repr(image_shape), "See its text."))
        return state_shape if 2 <= len(state_shape) <= 3 else None
    size = int(np.prod(state_shape))
    if not 1 <= len(image_shape) <= 3 or int(np.prod(image_shape)) != size:
        wanted = f"image_shape of one to three axes and {size} numbers"
        raise ValueError(expected(wanted, image_shape, "It is the shape of one state."))
    return tuple(image_shape)


@partial(jax.jit, static_argnums=2)
def _squares(chain: ReverseChain, key: jax.Array, size: int) -> Array:
    """The sum of the errors' outer products over so many draws, for every t: shape (T, d, d)."""
    draw_key, noise_key = jax.random.split(key)
    x_0 = chain.sample_last(draw_key, (size,))

    def at(t: Array) -> Array:
        x_t = chain.kernel.marginal(x_0, t).sample(jax.random.fold_in(noise_key, t))
        error = (x_0 - chain.denoised(x_t, jnp.full(size, t))).reshape(size, -1)
        return error.T @ error

    return jax.lax.map(at, jnp.arange(1, chain.num_steps + 1))


def _better_axes(first: Array, second: Array, count: int, rank: int, grid: Shape) -> tuple[Array, ...]:
    """The axes of the form in which errors of the first half make those of the second more likely; () for the plain."""
    levels = np.unique(np.linspace(0, len(first) - 1, _NUM_LEVELS).astype(int))
    first, second = symmetric(first[levels]), symmetric(second[levels])
    cosines = _axes(first, grid)
    plain, stationary = (_nats(_fitted(first, axes, count, rank), second) for axes in ((), cosines))
    return cosines if stationary < plain else ()


@jax.jit
def _nats(errors: ErrorCovariance, moments: Array) -> Array:
    each = jax.lax.map(lambda level: errors.at(level[0]).nats(level[1]), (errors.levels, moments))
    return jnp.where(jnp.isfinite(each).all(), each.sum(), jnp.inf)


def _axes(covariances: Array, grid: Shape) -> tuple[Array, ...]:
    """Cosines along height and width; the principal axes of colours."""
    axes = tuple(_cosines(size) for size in grid[:2])
    if len(grid) < 3:
        return axes
    scale = jnp.sqrt(_variances(covariances))
    correlations = (covariances / scale[:, None] / scale[..., None]).mean(0).reshape(*grid, *grid)
    return (*axes, jnp.linalg.eigh(jnp.einsum("ijcijd->cd", correlations))[1].T)


def _cosines(size: int) -> Array:
    """The orthonormal cosine transform, as a matrix."""
    places, orders = np.arange(size) + 0.5, np.arange(size)
    matrix = np.cos(np.pi * orders[:, None] * places / size) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return jnp.asarray(matrix, float)


def _variances(covariances: Array) -> Array:
    """Of each coordinate; of one that a network knows exactly, a millionth of the mean."""
    variances = jnp.diagonal(covariances, axis1=-2, axis2=-1)
    return jnp.maximum(variances, 1e-6 * variances.mean(-1, keepdims=True))


@partial(jax.jit, static_argnums=(2, 3))
def _fitted(covariances: Array, axes: Sequence[Array], count: int, rank: int) -> ErrorCovariance:
    """The form with these axes for sample covariances (T, d, d) of so many draws."""

    def one(covariance: Array) -> tuple[Array, Array, Array]:
        scale = jnp.sqrt(_variances(covariance[None])[0])
        within = covariance / scale / scale[:, None]
        factor, diagonal = _standing_out(along_axes(axes, along_axes(axes, within).T), count, rank)
        return factor, diagonal, scale

    factor, diagonal, scale = jax.lax.map(one, covariances)
    if axes:
        return ErrorCovariance(factor, diagonal, scale, axes)
    return ErrorCovariance(factor * scale[..., None], diagonal * scale**2)


def _standing_out(covariance: Array, count: int, rank: int) -> tuple[Array, Array]:
    """U, shape (d, q), of directions that stand out from the noise of a sample, 0 for others; D, what is left."""
    size, variance = len(covariance), _variances(covariance[None])[0]
    ratio = size / count
    edge = (1 + ratio**0.5) ** 2
    factor, diagonal = jnp.zeros((size, min(rank, size))), variance
    for _ in range(1 if size <= rank else _NUM_ROUNDS):
        units = jnp.sqrt(diagonal)
        values, directions = jnp.linalg.eigh(covariance / units / units[:, None])
        if size <= rank:
            kept = jnp.maximum(values, 0.0)
        else:
            bulk = _bulk(values, edge)
            is_above = values > bulk * edge
            kept = jnp.where(is_above, bulk * (_shrunk(jnp.where(is_above, values / bulk, 2 * edge), ratio) - 1), 0.0)
        factor = units[:, None] * directions[:, -rank:] * jnp.sqrt(kept[-rank:])
        diagonal = jnp.maximum(variance - (factor**2).sum(-1), _LEAST * variance)
    return factor, diagonal


def _bulk(values: Array, edge: float) -> Array:
    """The mean of the eigenvalues that do not stand out from it."""
    bulk = jnp.ones(())
    for _ in range(_NUM_ROUNDS_OF_BULK):
        inside = values <= bulk * edge
        bulk = jnp.maximum(jnp.where(inside, values, 0.0).sum() / jnp.maximum(inside.sum(), 1), _LEAST)
    return bulk


def _shrunk(values: Array, ratio: float) -> Array:
    """Eigenvalues above the edge, in units of the bulk, for a log density."""
    part = values + 1 - ratio
    true = (part + jnp.sqrt(jnp.maximum(part**2 - 4 * values, 0.0))) / 2
    above = true - 1
    cosine = (1 - ratio / above**2) / (1 + ratio / above)
    return true / (cosine + true * (1 - cosine))
