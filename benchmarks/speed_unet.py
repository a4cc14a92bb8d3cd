"""A small U-Net in Haiku for square grey images: two resolutions, group norm, the time added in every block.

It is a network as the package wants one, a callable ``network(x_t, t)``, and stays in the benchmarks: a user brings
their own. `speed_torch.py` has the same one in PyTorch, layer by layer under the same names.
"""

import dataclasses
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from numpyro_diffusion.networks.common import time_features


@dataclasses.dataclass(frozen=True)
class UNet:
    """Residual blocks at full and at half resolution, and a skip connection between the two of full resolution.

    Args:
        num_steps: T.
        num_outputs: ``kernel.num_outputs``.
        width: channels at full resolution, twice as many at half; divisible by 4 (the groups of the norm have 4).
        num_time_features: sines and cosines of t each.
    """

    num_steps: int
    num_outputs: int = 2
    width: int = 16
    num_time_features: int = 16

    def __call__(self, x_t: jax.Array, t: jax.Array) -> Any:
        """The output for x_t of shape (batch..., side, side, 1), side even."""
        batch, event = x_t.shape[:-3], x_t.shape[-3:]
        images = x_t.reshape(-1, *event)
        if jnp.ndim(t):  # else one embedding serves all images
            t = jnp.broadcast_to(t, batch).reshape(-1)
        time = time_features(jnp.atleast_1d(t), self.num_steps, self.num_time_features).astype(x_t.dtype)
        time = jax.nn.silu(hk.Linear(2 * self.width, name="time")(time))
        fine = _block("down", hk.Conv2D(self.width, 3, name="input")(images), time, self.width)
        coarse = _block("middle", _halve(fine), time, 2 * self.width)
        joined = jnp.concatenate([fine, _double(coarse)], axis=-1)
        hidden = jax.nn.silu(_GroupNorm("last_norm")(_block("up", joined, time, self.width)))
        zeros = hk.initializers.Constant(0.0)
        output = hk.Conv2D(self.num_outputs * event[-1], 3, w_init=zeros, name="output")(hidden)
        parts = tuple(part.reshape(x_t.shape) for part in jnp.split(output, self.num_outputs, axis=-1))
        return parts[0] if self.num_outputs == 1 else parts


def _block(name: str, x: jax.Array, time: jax.Array, width: int) -> jax.Array:
    hidden = hk.Conv2D(width, 3, name=f"{name}_first")(jax.nn.silu(_GroupNorm(f"{name}_first_norm")(x)))
    hidden = hidden + hk.Linear(width, name=f"{name}_time")(time)[:, None, None]
    hidden = hk.Conv2D(width, 3, name=f"{name}_second")(jax.nn.silu(_GroupNorm(f"{name}_second_norm")(hidden)))
    return hidden + (x if x.shape[-1] == width else hk.Conv2D(width, 1, name=f"{name}_skip")(x))


class _GroupNorm(hk.Module):
    """Group norm, four channels to a group, by first and second moments of each channel.

    Twice as fast in training on a CPU as ``hk.GroupNorm``, which moves the groups to an axis of their own.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1:]
        scale = hk.get_parameter("scale", size, x.dtype, hk.initializers.Constant(1.0))
        offset = hk.get_parameter("offset", size, x.dtype, hk.initializers.Constant(0.0))
        mean = _over_groups(x.mean((1, 2)))
        variance = jnp.maximum(_over_groups((x * x).mean((1, 2))) - mean**2, 0)  # not below 0 by rounding
        gain = scale * jax.lax.rsqrt(variance + 1e-5)
        return x * gain[:, None, None] + (offset - mean * gain)[:, None, None]


def _over_groups(x: jax.Array) -> jax.Array:
    """The mean over each four channels, for every one of them."""
    return x.reshape(len(x), -1, 4).mean(-1).repeat(4, axis=-1)


def _halve(x: jax.Array) -> jax.Array:
    """The mean of each square of two by two pixels."""
    count, height, width, channels = x.shape
    return x.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _double(x: jax.Array) -> jax.Array:
    """Each pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
