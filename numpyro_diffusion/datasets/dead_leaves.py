r"""Dead leaves: images of occluding discs, the simplest model with the edges and the scales of photographs.

Discs fall one over another for ever. Radii have density proportional to r^-exponent between two bounds, centres
are uniform, grey levels are independent and uniform on (-sqrt 3, sqrt 3): mean 0, variance 1. What is seen is drawn
from the front: a pixel belongs to the first disc that covers it, and drawing stops when every pixel belongs to one.
That is the stationary distribution itself, without a burn-in (Kendall and Thoennes 1999).

Centres lie in the square of the pixels and a margin of the largest radius around it, so that every disc that can
touch a pixel is drawn and the distribution is the same at every pixel, the corners included. It does not depend on the
image's size either: a crop of a larger image has the distribution of a small one. Pixels are points: no antialiasing.

Two pixels at distance d share a leaf, and so have covariance, with probability

    gamma(d) / (2 gamma(0) - gamma(d)),    gamma(d) = E[area of a disc and of itself shifted by d, in common].

References: Jeulin 1997; Lee, Mumford and Huang 2001; Kendall and Thoennes 1999, "Perfect simulation in stochastic
geometry"; the data of Sohl-Dickstein et al. 2015, Section 3.2.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from .._checks import check_integer_at_least, expected
from .._typing import Array

# Leaves drawn at a time: few enough that little is drawn past the last one needed, enough to fill the vector units.
_BLOCK = 64
# Leaves for an image on average, beyond which it would take seconds.
_MOST_LEAVES = 1e6


def dead_leaves(
    rng_key: jax.Array,
    num_images: int,
    *,
    size: int = 32,
    min_radius: float = 2.0,
    max_radius: float = 16.0,
    exponent: float = 3.0,
    noise: float = 0.0,
) -> Array:
    """Square images of occluding discs, whose distribution has mean 0 and variance 1.

    Without noise there is no density, because pixels of one leaf are equal: a log likelihood then grows
    without bound, and says nothing. Give ``noise`` where likelihoods are compared.

    Args:
        rng_key: JAX random key.
        num_images: how many.
        size: pixels on a side.
        min_radius: radius of the smallest leaf, in pixels, > 0; below 2 the pixels no longer show a disc, and the time
            grows as its inverse square.
        max_radius: radius of the largest leaf, in pixels; equal to ``min_radius`` for one size of leaves.
        exponent: radii have density proportional to r^-exponent, >= 0; 3 makes the image nearly free of scale.
        noise: standard deviation of Gaussian noise added to every pixel before the images are scaled to variance 1.

    Returns:
        Shape (num_images, size, size, 1).

    Raises:
        ValueError: if an argument is out of its range, or the leaves are so small that an image takes over a million.

    >>> dead_leaves(jax.random.key(0), 2, size=8, max_radius=4.0).shape
    (2, 8, 8, 1)
    """
    check_integer_at_least("num_images", num_images, 1, "Pass the number of images.")
    check_integer_at_least("size", size, 1, "Pass the pixels on a side.")
    if not 0 < min_radius <= max_radius < math.inf:
        got = f"min_radius={min_radius} and max_radius={max_radius}"
        raise ValueError(expected("0 < min_radius <= max_radius", got, "They are radii in pixels."))
    if not 0 <= exponent < math.inf:
        raise ValueError(expected("exponent >= 0", exponent, "Radii have density proportional to r^-exponent."))
    if not 0 <= noise < math.inf:
        raise ValueError(expected("noise >= 0", noise, "It is a standard deviation; that of the leaves is 1."))
    leaves = _expected_leaves(size, min_radius, max_radius, exponent)
    if leaves > _MOST_LEAVES:
        cure = "Raise min_radius, or lower max_radius or exponent."
        raise ValueError(expected(f"leaves of which {_MOST_LEAVES:.0e} cover an image", f"{leaves:.1e}", cure))
    return _draw(
        rng_key, int(num_images), int(size), float(min_radius), float(max_radius), float(exponent), float(noise)
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6))
def _draw(
    key: jax.Array, num_images: int, size: int, smallest: float, largest: float, exponent: float, noise: float
) -> Array:
    """All images, one after another, so that each stops at its own last leaf."""

    def one_image(key: jax.Array) -> Array:
        key_leaves, key_noise = jax.random.split(key)
        image = _leaves(key_leaves, size, smallest, largest, exponent)
        return (image + noise * jax.random.normal(key_noise, image.shape)) / math.sqrt(1 + noise**2)

    return lax.map(one_image, jax.random.split(key, num_images))[..., None]


def _leaves(key: jax.Array, size: int, smallest: float, largest: float, exponent: float) -> Array:
    """One image, shape (size, size): blocks of leaves, from the front, until no pixel is bare."""
    pixels = jnp.arange(size, dtype=float)
    order = jnp.arange(_BLOCK)[:, None, None]

    def bare(state: tuple[Array, Array, Array]) -> Array:
        return ~state[2].all()

    def add_block(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        block, image, covered = state
        key_radius, key_centre, key_grey = jax.random.split(jax.random.fold_in(key, block), 3)
        radius = _radii(jax.random.uniform(key_radius, (_BLOCK,)), smallest, largest, exponent)
        centre = jax.random.uniform(key_centre, (2, _BLOCK), minval=-largest, maxval=size - 1 + largest)
        grey = jax.random.uniform(key_grey, (_BLOCK,), minval=-math.sqrt(3), maxval=math.sqrt(3))
        squares = (pixels - centre[..., None]) ** 2
        # Of the leaves over a pixel the first is in front.
        inside = squares[0][:, :, None] + squares[1][:, None, :] < radius[:, None, None] ** 2
        first = jnp.where(inside, order, _BLOCK).min(0)
        new = (first < _BLOCK) & ~covered
        image = jnp.where(new, grey[jnp.minimum(first, _BLOCK - 1)], image)
        return block + 1, image, covered | new

    start = (jnp.asarray(0), jnp.zeros((size, size)), jnp.zeros((size, size), bool))
    return lax.while_loop(bare, add_block, start)[1]


def _radii(u: Array, smallest: float, largest: float, exponent: float) -> Array:
    """The quantile function of the density r^-exponent, by expm1 and log1p, which lose nothing near exponent 1."""
    power, log_ratio = 1 - exponent, math.log(largest / smallest)
    if power == 0:
        return smallest * jnp.exp(u * log_ratio)
    return smallest * jnp.exp(jnp.log1p(u * math.expm1(power * log_ratio)) / power)


def _expected_leaves(size: int, smallest: float, largest: float, exponent: float) -> float:
    """An upper bound on the mean number of leaves: (1 + log of the pixels) / the probability to cover one pixel."""
    log_ratio = math.log(largest / smallest)

    def integral(power: float) -> float:  # of s^(power - 1) from 1 to the ratio of the radii
        return math.expm1(power * log_ratio) / power if power else log_ratio

    mean_square = smallest**2 * (integral(3 - exponent) / integral(1 - exponent) if log_ratio else 1.0)
    return (1 + math.log(size**2)) * (size - 1 + 2 * largest) ** 2 / (math.pi * mean_square)
