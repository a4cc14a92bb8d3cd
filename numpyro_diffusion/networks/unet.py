"""A U-Net: residual blocks at several resolutions, each told the time, with attention at the lowest.

Down: blocks, then means over squares of two by two pixels. Up: pixels doubled, joined with what was there on the way
down, blocks again. Sizes need not be powers of two, nor those of training.

References: Ronneberger et al. 2015; Ho et al. 2020, Appendix B (group norm, time in every block, attention).
"""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_integer_at_least, expected
from .._typing import Array
from .common import distinct_steps, time_features
from .images import (
    GroupNorm,
    convolution,
    enlarge,
    from_patches,
    in_half_precision,
    shrink,
    to_images,
    to_outputs,
    to_patches,
    to_rows,
)

__all__ = ["UNet"]


@dataclasses.dataclass(frozen=True)
class UNet:
    """Residual blocks at ``num_levels`` resolutions; the usual choice for images.

    The last layer starts at zero, so before training the network returns 0.

    Args:
        num_steps: T, ``kernel.num_steps``.
        num_outputs: ``kernel.num_outputs``.
        width: channels at full resolution, a multiple of 4; twice as many at the others.
        num_levels: resolutions: full, half, a quarter, ...
        num_blocks: residual blocks at each resolution, on the way down and on the way up.
        attention: self-attention over all pixels of the lowest resolution, after its first block.
        num_time_features: sines and cosines of t each.
        event_dim: 3 for images (height, width, channels), 2 for grey ones (height, width).
        context_dim: how many trailing dimensions of the context are one context, which joins the time in every block.
        checkpoint: keep no insides of blocks for the gradient but compute them again: less memory, a third more time.
        bfloat16: compute in half precision; parameters and outputs stay in x_t's.
        patch_size: side of the squares of pixels that are one pixel inside, their numbers its channels. 2 makes a
            call about four times cheaper.

    Raises:
        ValueError: for sizes that are no integers, or too small, and for a width that is no multiple of 4.

    >>> network = UNet(num_steps=100, width=8, num_levels=2)
    >>> init = hk.transform(network).init
    >>> params = jax.eval_shape(init, jax.random.key(0), jnp.ones((8, 8, 1)), jnp.array(1))
    >>> params["middle_0_first"]["w"].shape
    (3, 3, 8, 16)
    """

    num_steps: int
    num_outputs: int = 2
    width: int = 32
    num_levels: int = 3
    num_blocks: int = 1
    attention: bool = True
    num_time_features: int = 16
    event_dim: int = 3
    context_dim: int = 1
    checkpoint: bool = False
    bfloat16: bool = False
    patch_size: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type is int:
                least = int(field.name != "context_dim")
                check_integer_at_least(field.name, getattr(self, field.name), least, "It is a size.")
        if self.width % 4:
            raise ValueError(expected("width to be a multiple of 4", self.width, "The norm's groups have 4 channels."))

    def __call__(self, x_t: Array, t: Array, context: Array | None = None) -> Array | tuple[Array, ...]:
        """The output for x_t of shape (batch..., height, width, channels), or as ``event_dim`` says."""
        batch_shape = x_t.shape[: x_t.ndim - self.event_dim]
        images = to_images(x_t, self.event_dim)
        with in_half_precision(self.bfloat16, x_t.dtype) as dtype:
            steps, rows_of_t = distinct_steps(to_rows(jnp.asarray(t), batch_shape), self.num_steps)
            time = time_features(steps, self.num_steps, self.num_time_features).astype(dtype)
            time = rows_of_t(jax.nn.silu(hk.Linear(2 * self.width, name="time")(time)))
            if context is not None:
                rows = to_rows(jnp.asarray(context), batch_shape, self.context_dim).astype(dtype)
                time = time + jax.nn.silu(hk.Linear(2 * self.width, name="context")(rows))
            hidden = self._walk(to_patches(images.astype(dtype), self.patch_size), time)
            hidden = jax.nn.silu(GroupNorm("last_norm")(hidden))
            channels = self.num_outputs * images.shape[-1] * self.patch_size**2
            maps = convolution(hidden, channels, 3, "output", scale=0.0)
            maps = from_patches(maps, self.patch_size, *images.shape[1:3])
        return to_outputs(maps, self.num_outputs, x_t)

    def _walk(self, images: Array, time: Array) -> Array:
        """Down and up again, to ``width`` channels at full resolution."""
        hidden = convolution(images, self.width, 3, "input")
        passed = []
        for level in range(self.num_levels - 1):
            for block in range(self.num_blocks):
                hidden = self._block(f"down_{level}_{block}", hidden, time, self._channels(level))
            passed.append(hidden)
            hidden = shrink(hidden, 2)
        for block in range(self.num_blocks):
            hidden = self._block(f"middle_{block}", hidden, time, self._channels(self.num_levels - 1))
            if self.attention and not block:
                hidden = _attention(hidden)
        for level in reversed(range(self.num_levels - 1)):
            beside = passed[level]
            hidden = jnp.concatenate([beside, enlarge(hidden, 2, *beside.shape[1:3])], axis=-1)
            for block in range(self.num_blocks):
                hidden = self._block(f"up_{level}_{block}", hidden, time, self._channels(level))
        return hidden

    def _channels(self, level: int) -> int:
        return self.width if level == 0 else 2 * self.width

    def _block(self, name: str, images: Array, time: Array, channels: int) -> Array:
        apply = lambda images, time: _block(name, images, time, channels)  # noqa: E731
        return (hk.remat(apply) if self.checkpoint else apply)(images, time)


def _block(name: str, images: Array, time: Array, channels: int) -> Array:
    hidden = convolution(jax.nn.silu(GroupNorm(f"{name}_first_norm")(images)), channels, 3, f"{name}_first")
    hidden = hidden + hk.Linear(channels, name=f"{name}_time")(time)[:, None, None]
    hidden = convolution(jax.nn.silu(GroupNorm(f"{name}_second_norm")(hidden)), channels, 3, f"{name}_second")
    same = images.shape[-1] == channels
    return hidden + (images if same else convolution(images, channels, 1, f"{name}_skip"))


def _attention(images: Array) -> Array:
    """Every pixel sees all others, one head; starts as the identity.

    References: Vaswani et al. 2017.
    """
    count, height, width, channels = images.shape
    flat = GroupNorm("attention_norm")(images).reshape(count, height * width, channels)
    query, key, value = jnp.split(hk.Linear(3 * channels, name="attention_input")(flat), 3, axis=-1)
    scores = jnp.einsum("nqc,nkc->nqk", query, key) / np.asarray(np.sqrt(channels), query.dtype)
    exact = jnp.promote_types(scores.dtype, jnp.float32)
    weights = jax.nn.softmax(scores.astype(exact), axis=-1).astype(scores.dtype)
    mixed = jnp.einsum("nqk,nkc->nqc", weights, value)
    zeros = hk.initializers.Constant(0.0)
    return images + hk.Linear(channels, w_init=zeros, name="attention_output")(mixed).reshape(images.shape)
