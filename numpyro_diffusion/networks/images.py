"""What networks of images share: one batch axis, layers that keep to any size, and arithmetic in half precision."""

import contextlib
from collections.abc import Iterator
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from .._checks import expected
from .._typing import Array, Shape
from .common import flatten_event

__all__ = [
    "GroupNorm",
    "convolution",
    "enlarge",
    "from_patches",
    "in_half_precision",
    "shrink",
    "to_images",
    "to_outputs",
    "to_patches",
    "to_rows",
]


def to_images(x_t: Array, event_dim: int) -> Array:
    """Events (height, width) with ``event_dim`` 2, or (height, width, channels) with 3, as (count, h, w, c).

    Raises:
        ValueError: for an event that is no image.
    """
    if event_dim not in (2, 3) or x_t.ndim < event_dim:
        wanted = "x_t of shape (batch..., height, width, channels), or without channels and event_dim=2"
        raise ValueError(expected(wanted, f"{x_t.shape} and event_dim={event_dim}", "Reshape the data to images."))
    with_channels = x_t if event_dim == 3 else x_t[..., None]
    return with_channels.reshape((-1, *with_channels.shape[-3:]))


def to_rows(value: Array, batch_shape: Shape, event_dim: int = 0) -> Array:
    """What belongs to each image, in the order of :func:`to_images`; one row for all where it has no batch shape.

    Raises:
        ValueError: where it has more batch dimensions than the images.
    """
    if value.ndim - event_dim > len(batch_shape):
        wanted = f"t and context to broadcast with the batch shape {batch_shape} of x_t"
        cure = "Reshape the data to images, or set event_dim (and context_dim)."
        raise ValueError(expected(wanted, f"shape {value.shape}", cure))
    if value.ndim > event_dim:
        value = jnp.broadcast_to(value, batch_shape + value.shape[value.ndim - event_dim :])
        value = value.reshape((-1, *value.shape[value.ndim - event_dim :]))
    else:
        value = value[None]
    return flatten_event(value, event_dim)[0] if event_dim else value


def to_outputs(maps: Array, num_outputs: int, x_t: Array) -> Array | tuple[Array, ...]:
    """(count, h, w, num_outputs * c) to one array of x_t's shape and dtype, or a tuple of several."""
    parts = tuple(part.reshape(x_t.shape).astype(x_t.dtype) for part in jnp.split(maps, num_outputs, axis=-1))
    return parts[0] if num_outputs == 1 else parts


def _squares(images: Array, factor: int) -> Array:
    """(count, rows, factor, columns, factor, c): squares of pixels; a ragged edge is filled with its last pixels."""
    count, height, width, channels = images.shape
    ragged = (0, -height % factor), (0, -width % factor)
    if any(ragged[0] + ragged[1]):
        images = jnp.pad(images, ((0, 0), *ragged, (0, 0)), mode="edge")
    return images.reshape(count, images.shape[1] // factor, factor, images.shape[2] // factor, factor, channels)


def shrink(images: Array, factor: int) -> Array:
    """The mean of each square of ``factor`` by ``factor`` pixels; a ragged edge is filled with its last pixels."""
    return images if factor == 1 else _squares(images, factor).mean((2, 4))


def to_patches(images: Array, factor: int) -> Array:
    """Each square of ``factor`` by ``factor`` pixels as one pixel of factor^2 c channels; ragged edges as in shrink."""
    if factor == 1:
        return images
    squares = _squares(images, factor).swapaxes(2, 3)
    return squares.reshape(*squares.shape[:3], -1)


def from_patches(maps: Array, factor: int, height: int, width: int) -> Array:
    """Undo :func:`to_patches`, cut to ``height`` and ``width``."""
    if factor == 1:
        return maps
    count, rows, columns, _ = maps.shape
    squares = maps.reshape(count, rows, columns, factor, factor, -1).swapaxes(2, 3)
    return squares.reshape(count, rows * factor, columns * factor, -1)[:, :height, :width]


def enlarge(images: Array, factor: int, height: int, width: int) -> Array:
    """Each pixel as a square of ``factor`` by ``factor``, cut to ``height`` and ``width``."""
    if factor == 1:
        return images
    return images.repeat(factor, axis=1).repeat(factor, axis=2)[:, :height, :width]


def convolution(images: Array, channels: int, size: int, name: str, scale: float = 1.0) -> Array:
    """A convolution of the same size, padded by zeros; initial weights of variance ``scale`` / inputs, zeros for 0."""
    init = hk.initializers.VarianceScaling(scale) if scale else hk.initializers.Constant(0.0)
    return hk.Conv2D(channels, size, w_init=init, name=name)(images)


class GroupNorm(hk.Module):
    """Group norm, four channels to a group, by first and second moments of each channel.

    Twice as fast in training on a CPU as ``hk.GroupNorm``, which moves the groups to an axis of their own.

    References: Wu and He 2018.
    """

    def __call__(self, images: Array) -> Array:
        """Images of shape (count, h, w, c), c a multiple of 4, with mean 0 and variance 1 in each group."""
        size = images.shape[-1:]
        scale = hk.get_parameter("scale", size, images.dtype, hk.initializers.Constant(1.0))
        offset = hk.get_parameter("offset", size, images.dtype, hk.initializers.Constant(0.0))
        # Moments of half-precision numbers lose what matters: take them in single precision.
        exact = images.astype(jnp.promote_types(images.dtype, jnp.float32))
        mean = _over_groups(exact.mean((1, 2)))
        variance = jnp.maximum(_over_groups((exact * exact).mean((1, 2))) - mean**2, 0)  # not below 0 by rounding
        gain = (scale * jax.lax.rsqrt(variance + 1e-5).astype(images.dtype))[:, None, None]
        return images * gain + (offset[None, None, None] - mean.astype(images.dtype)[:, None, None] * gain)


def _over_groups(moments: Array) -> Array:
    """The mean over each four channels, for every one of them."""
    return moments.reshape(len(moments), -1, 4).mean(-1).repeat(4, axis=-1)


@contextlib.contextmanager
def in_half_precision(switched_on: bool, dtype: Any) -> Iterator[Any]:
    """The dtype to compute in: within, layers on bfloat16 inputs keep their parameters in ``dtype``.

    Args:
        switched_on: bfloat16, or everything in ``dtype``.
        dtype: of parameters and results.
    """
    if not switched_on:
        yield dtype
        return

    def creator(create: Any, shape: Any, _: Any, init: Any, __: Any) -> Array:
        return create(shape, dtype, init)

    def getter(get: Any, value: Array, _: Any) -> Array:
        return get(value).astype(jnp.bfloat16)

    with hk.custom_creator(creator), hk.custom_getter(getter):
        yield jnp.bfloat16
