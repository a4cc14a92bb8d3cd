r"""What a conditional network sees of the data y: an embedding of y, trained with the network.

    network(x^t, t, context) = core(x^t, t, [embedding(y), rest]),     context = [y, rest], flat

y is one array, or a dictionary of arrays where several sites are observed, each standardised, with one leading axis of
rows. An embedding is a Haiku function of it that returns shape (rows, size): those below, or any of yours. One that
looks at y through means over an axis does not change when rows along this axis are exchanged, as it should not for
independent, identically distributed data.

``of_data`` computes the embedding once for a data set; ``core`` then makes all its draws.

References: Zaheer et al. 2017 (sets).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import haiku as hk
import jax
import jax.numpy as jnp

from .._checks import expected
from .._typing import Array, PyTree, Shape

__all__ = ["Embedded", "ImageEmbedding", "SeriesEmbedding", "SetEmbedding", "VectorEmbedding"]

Observations: TypeAlias = Array | dict[str, Array]

_SCOPE = "embedding"  # of its parameters, so that no name of the core's is one of theirs


@dataclasses.dataclass(frozen=True)
class VectorEmbedding:
    """Residual SiLU layers of all numbers of y.

    Args:
        size: numbers that it returns.
        width: units of each layer.
        depth: hidden layers.

    >>> embed = hk.without_apply_rng(hk.transform(VectorEmbedding(size=5, width=8, depth=1)))
    >>> embed.apply(embed.init(jax.random.key(0), jnp.ones((3, 2, 2))), jnp.ones((3, 2, 2))).shape
    (3, 5)
    """

    size: int = 64
    width: int = 128
    depth: int = 2

    def __call__(self, y: Observations) -> Array:
        """Shape (rows, size)."""
        return _perceptron(_rows(y), self.width, self.depth, self.size, "vector")

    @staticmethod
    def features(y: Observations) -> Array:
        """What a linear regression on y looks at: all its numbers."""
        return _rows(y)


@dataclasses.dataclass(frozen=True)
class SetEmbedding:
    """Means of functions of each member: the same for members in any order, for independent, identical data.

    Members run along the first axis of each array of y, after that of rows; those of several arrays belong together.

    Args:
        size: numbers that it returns.
        width: units of each layer.
        depth: hidden layers, of members and of their means each.

    >>> embed = hk.without_apply_rng(hk.transform(SetEmbedding(size=5, width=8, depth=1)))
    >>> y = jax.random.normal(jax.random.key(0), (3, 7))
    >>> params = embed.init(jax.random.key(1), y)
    >>> bool(jnp.allclose(embed.apply(params, y), embed.apply(params, y[:, ::-1]), atol=1e-5))
    True

    References: Zaheer et al. 2017, Theorem 2.
    """

    size: int = 64
    width: int = 128
    depth: int = 2

    def __call__(self, y: Observations) -> Array:
        """Shape (rows, size)."""
        hidden = _perceptron(_members(y), self.width, self.depth, self.width, "member").mean(1)
        pooled = jnp.concatenate([hidden, self.features(y)], axis=-1)
        return _perceptron(pooled, self.width, self.depth, self.size, "set")

    @staticmethod
    def features(y: Observations) -> Array:
        """What a linear regression on y looks at: the members' first two moments."""
        members = _members(y)
        return jnp.concatenate([members, members**2], axis=-1).mean(1)


@dataclasses.dataclass(frozen=True)
class SeriesEmbedding:
    """Convolutions along the first axis of y, each of half the length, then all that is left of it.

    Several sites of one length are its channels.

    Args:
        size: numbers that it returns.
        width: channels of each layer.
        depth: convolutions.

    >>> embed = hk.without_apply_rng(hk.transform(SeriesEmbedding(size=5, width=4, depth=1)))
    >>> embed.apply(embed.init(jax.random.key(0), jnp.ones((3, 20))), jnp.ones((3, 20))).shape
    (3, 5)
    """

    size: int = 64
    width: int = 32
    depth: int = 3

    def __call__(self, y: Observations) -> Array:
        """Shape (rows, size)."""
        layers = [hk.Conv1D(self.width, 5, stride=2, name=f"series_{layer}") for layer in range(self.depth)]
        return _through(layers, hk.Linear(self.size, name="series_output"), _members(y))


@dataclasses.dataclass(frozen=True)
class ImageEmbedding:
    """Convolutions of an image (height, width) or (height, width, channels), each of half the sides, then what is left.

    Several sites of one height and width are its channels.

    Args:
        size: numbers that it returns.
        width: channels of each layer.
        depth: convolutions.

    >>> embed = hk.without_apply_rng(hk.transform(ImageEmbedding(size=5, width=4, depth=1)))
    >>> embed.apply(embed.init(jax.random.key(0), jnp.ones((3, 8, 8))), jnp.ones((3, 8, 8))).shape
    (3, 5)
    """

    size: int = 64
    width: int = 32
    depth: int = 3

    def __call__(self, y: Observations) -> Array:
        """Shape (rows, size)."""
        layers = [hk.Conv2D(self.width, 3, stride=2, name=f"image_{layer}") for layer in range(self.depth)]
        return _through(layers, hk.Linear(self.size, name="image_output"), _channels(y, 3))


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A conditional network that sees y through an embedding.

    Args:
        core: a conditional network, called as ``core(x_t, t, context)``, context of shape (batch..., numbers).
        embedding: a Haiku function of y.
        shapes: names and shapes of what is observed, in the order in which the context holds them.

    >>> import numpyro_diffusion as nd
    >>> network = Embedded(nd.networks.MLP(10, 2, width=8, depth=1), VectorEmbedding(4, 8, 1), (("y", (3,)),))
    >>> function = nd.modules.HaikuFunction(network)
    >>> x, t, context = jnp.ones((5, 2)), jnp.ones(5, int), jnp.ones((5, 3))
    >>> params, _ = function.init(jax.random.key(0), x, t, context)
    >>> embedded = network.of_data(params, context)
    >>> alone = nd.modules.HaikuFunction(network.core)(network.params_of_core(params), x, t, embedded)
    >>> embedded.shape, bool((alone[0] == function(params, x, t, context)[0]).all())
    ((5, 4), True)
    """

    core: Any
    embedding: Callable[[Any], Any]
    shapes: tuple[tuple[str, Shape], ...]

    def __call__(self, x_t: Array, t: Array, context: Array) -> Any:
        """The core's output, for a context of shape (batch..., numbers of y and the rest)."""
        return self.core(x_t, t, self._embed(context))

    def of_data(self, params: PyTree, context: Array) -> Array:
        """The context of the core: the embedding of y and the rest, shape (batch..., size)."""
        embed = hk.without_apply_rng(hk.transform(self._embed))
        return embed.apply({name: leaf for name, leaf in params.items() if _is_embedding(name)}, context)

    def params_of_core(self, params: PyTree) -> PyTree:
        """Those of the core alone."""
        return {name: leaf for name, leaf in params.items() if not _is_embedding(name)}

    def _embed(self, context: Array) -> Array:
        flat = context.reshape((-1, context.shape[-1]))
        y = self._observations(flat)
        with hk.experimental.name_scope(_SCOPE):
            embedded = self.embedding(y)
        if jnp.ndim(embedded) != 2 or len(embedded) != len(flat):
            wanted = f"an embedding of shape ({len(flat)}, size) of y with {len(flat)} rows"
            raise ValueError(expected(wanted, f"shape {jnp.shape(embedded)}", "Keep the first axis, flatten the rest."))
        rest = flat[:, self._size :]
        return jnp.concatenate([embedded, rest], axis=-1).reshape((*context.shape[:-1], -1))

    @property
    def _size(self) -> int:
        return sum(math.prod(shape) for _, shape in self.shapes)

    def features_of(self, codes: Array) -> Array:
        """What a linear regression on y looks at, of codes of y of shape (rows, numbers).

        Nothing, if the embedding has no ``features``.
        """
        features = getattr(self.embedding, "features", None)
        return codes[:, :0] if features is None else features(self._observations(codes))

    def _observations(self, flat: Array) -> Observations:
        y, start = {}, 0
        for name, shape in self.shapes:
            size = math.prod(shape)
            y[name] = flat[:, start : start + size].reshape((-1, *shape))
            start += size
        return y if len(y) > 1 else next(iter(y.values()))


def _is_embedding(name: str) -> bool:
    return name.split("/")[0] == _SCOPE


def _through(layers: Sequence[Callable[[Array], Array]], output: Callable[[Array], Array], hidden: Array) -> Array:
    for layer in layers:
        hidden = jax.nn.silu(layer(hidden))
    return output(_rows(hidden))


def _rows(y: Observations) -> Array:
    arrays = [y[name] for name in sorted(y)] if isinstance(y, dict) else [y]
    return jnp.concatenate([array.reshape((len(array), -1)) for array in arrays], axis=-1)


def _members(y: Observations) -> Array:
    """Shape (rows, members, numbers)."""
    return _channels(y, 2)


def _channels(y: Observations, num_axes: int) -> Array:
    """So many axes, those of rows and places, and one of all numbers at a place, of all sites."""
    arrays = [y[name] for name in sorted(y)] if isinstance(y, dict) else [y]
    return jnp.concatenate([array.reshape((*array.shape[:num_axes], -1)) for array in arrays], axis=-1)


def _perceptron(x: Array, width: int, depth: int, size: int, name: str) -> Array:
    hidden = hk.Linear(width, name=f"{name}_input")(x)
    for layer in range(depth):
        hidden = hidden + hk.Linear(width, name=f"{name}_{layer}")(jax.nn.silu(hidden))
    return hk.Linear(size, name=f"{name}_output")(jax.nn.silu(hidden))
