"""From integer images to what a Gaussian kernel expects: floats with a density, of mean 0 and variance 1.

    patches        crops of one large image
    dequantise     integers plus uniform noise in [0, 1)
    standardise    one mean and one scale for all pixels of all images

One scale for all pixels keeps an image an image, and makes log densities easy to carry over: that of the images is
that of the standardised ones minus log(scale) for each pixel and channel. Of dequantised images the mean log density
is at most the log likelihood of the integers, without further terms (Theis, van den Oord and Bethge 2016).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_finite, check_floating, check_integer_at_least, expected, is_concrete
from .._typing import Array, ArrayLike

_ROWS = 1024  # at a time in double precision, so that a large set is not copied whole
_FLOATS = "Integer grey levels have no density: dequantise them first."


class Scaling(NamedTuple):
    """One mean and one scale, from the training images; held-out images take the same.

    Attributes:
        mean: of all pixels of all images.
        scale: their standard deviation.

    >>> Scaling(mean=3.0, scale=2.0).apply(jnp.array([3.0, 5.0]))
    Array([0., 1.], dtype=float32)
    """

    mean: float
    scale: float

    def apply(self, images: ArrayLike) -> Array:
        """(images - mean) / scale, of the shape that came.

        Raises:
            TypeError: if the images are not floating-point.
        """
        check_floating("images", images, _FLOATS)
        return (jnp.asarray(images) - self.mean) / self.scale

    def invert(self, images: ArrayLike) -> Array:
        """The way back, images * scale + mean, of the shape that came.

        Raises:
            TypeError: if the images are not floating-point.
        """
        check_floating("images", images, "Pass what apply returned, or draws of a model of it.")
        return jnp.asarray(images) * self.scale + self.mean


def dequantise(rng_key: jax.Array, images: ArrayLike, num_levels: int) -> Array:
    """Integer grey levels plus uniform noise in [0, 1): the sum has a density, and rounding down gives the levels back.

    The noise is uniform on the multiples of a power of 2 so small that every sum is exact in floating point.

    Args:
        rng_key: JAX random key.
        images: integers from 0 to ``num_levels`` - 1, any shape.
        num_levels: how many grey levels there are, 2 to 65536; 256 for photographs, 17 for :func:`digits`.

    Returns:
        Floats in [0, ``num_levels``), of the shape that came.

    Raises:
        TypeError: if the images are not integers.
        ValueError: if a level lies outside.

    References:
        Sohl-Dickstein et al. 2015, Table 1 (CIFAR-10); Theis, van den Oord and Bethge 2016, Section 3.1.

    >>> x = dequantise(jax.random.key(0), jnp.array([0, 255]), 256)
    >>> jnp.floor(x).tolist()
    [0.0, 255.0]
    """
    dtype = jnp.result_type(images)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(expected("integer grey levels for images", f"dtype {dtype}", "Dequantise before scaling."))
    check_integer_at_least("num_levels", num_levels, 2, "Pass the number of grey levels, 256 for photographs.")
    if num_levels > 2**16:
        raise ValueError(expected("num_levels <= 65536", num_levels, "Single precision leaves no room for the noise."))
    if is_concrete(images):
        lowest, highest = (int(np.min(images)), int(np.max(images))) if np.size(images) else (0, 0)
        if lowest < 0 or highest >= num_levels:
            got = f"{lowest} to {highest}"
            raise ValueError(expected(f"grey levels from 0 to {num_levels - 1}", got, "Pass the right num_levels."))
    levels = jnp.asarray(images).astype(float)
    # What the mantissa has left beside the largest level.
    steps = 2.0 ** (jnp.finfo(levels.dtype).nmant + 1 - math.ceil(math.log2(num_levels)))
    return levels + jnp.floor(jax.random.uniform(rng_key, levels.shape, levels.dtype) * steps) / steps


def standardise(images: ArrayLike) -> tuple[Array, Scaling]:
    """Images of mean 0 and variance 1 over all pixels together, and the mean and the scale that made them so.

    The two numbers are computed on the host, in double precision.

    Args:
        images: the training images, floats of any shape.

    Returns:
        The images, of the shape that came, and the :class:`Scaling` for held-out images and for the way back.

    Raises:
        TypeError: if the images are not floating-point.
        ValueError: if a value is not finite, if there is none, or if all are equal.

    >>> x, scaling = standardise(jnp.array([1.0, 5.0]))
    >>> scaling, x.tolist(), scaling.invert(x).tolist()
    (Scaling(mean=3.0, scale=2.0), [-1.0, 1.0], [1.0, 5.0])
    """
    check_floating("images", images, _FLOATS)
    check_finite("images", images)
    values = np.asarray(images)
    if values.size == 0:
        raise ValueError(expected("at least one value in images", f"shape {values.shape}", "Pass the training images."))
    if values.min() == values.max():
        raise ValueError(expected("images that vary", f"{values.min()} everywhere", "A constant has no scale."))
    rows = values.reshape(len(values), -1)
    mean = float(rows.mean(dtype=np.float64))
    parts = (rows[start : start + _ROWS].astype(np.float64) for start in range(0, len(rows), _ROWS))
    scale = math.sqrt(sum(float(((part - mean) ** 2).sum()) for part in parts) / values.size)
    scaling = Scaling(mean, scale)
    return scaling.apply(images), scaling


def patches(rng_key: jax.Array, image: ArrayLike, num_patches: int, size: int) -> Array:
    """Square crops of one image, at places drawn evenly; they may overlap.

    Args:
        rng_key: JAX random key.
        image: shape (height, width) or (height, width, channels).
        num_patches: how many.
        size: pixels on a side, at most the image's shorter side.

    Returns:
        Shape (num_patches, size, size, channels), of the image's dtype; one channel for a grey image.

    Raises:
        ValueError: if the image has another rank, is smaller than a patch, or has values that are not finite.

    >>> patches(jax.random.key(0), jnp.zeros((20, 30)), 5, 8).shape
    (5, 8, 8, 1)
    """
    shape = jnp.shape(image)
    if len(shape) not in (2, 3) or 0 in shape:
        wanted = "an image of shape (height, width) or (height, width, channels)"
        raise ValueError(expected(wanted, f"shape {shape}", "Pass one image, not a batch."))
    check_finite("image", image)
    check_integer_at_least("num_patches", num_patches, 1, "Pass the number of patches.")
    check_integer_at_least("size", size, 1, "Pass the pixels on a side.")
    if size > min(shape[:2]):
        cure = "Pass a larger image, or ask for smaller patches."
        raise ValueError(expected(f"size <= {min(shape[:2])}, the image's shorter side", size, cure))
    return _crop(rng_key, jnp.asarray(image).reshape(*shape[:2], -1), int(num_patches), int(size))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _crop(key: jax.Array, image: Array, num_patches: int, size: int) -> Array:
    """The patches of an image with channels."""
    height, width, channels = image.shape
    corners = jax.random.randint(key, (num_patches, 2), 0, jnp.array([height - size + 1, width - size + 1]))
    return jax.vmap(lambda corner: jax.lax.dynamic_slice(image, (*corner, 0), (size, size, channels)))(corners)
