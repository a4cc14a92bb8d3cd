"""What the networks share: flattening events, features of time and space, readouts that differ by step."""

from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Shape

__all__ = [
    *("bump_features", "distinct_steps", "flatten_event", "fourier_features", "split_outputs", "step_readout"),
    "time_features",
]


def flatten_event(x: Array, event_dim: int) -> tuple[Array, Shape]:
    """(batch..., event...) to (batch..., size), and the event's shape."""
    split = x.ndim - event_dim
    return x.reshape((*x.shape[:split], -1)), x.shape[split:]


def split_outputs(flat: Array, num_outputs: int, event_shape: Shape) -> Array | tuple[Array, ...]:
    """(batch..., num_outputs * size) to one array of (batch..., event...), or a tuple of several."""
    parts = jnp.split(flat, num_outputs, axis=-1)
    shaped = tuple(part.reshape(part.shape[:-1] + event_shape) for part in parts)
    return shaped[0] if num_outputs == 1 else shaped


def distinct_steps(t: Array, num_steps: int) -> tuple[Array, Callable[[Array], Array]]:
    """Steps to embed, each once, and how to pick the rows of ``t`` from what was made of them.

    A batch of 512 examples at T = 100 has at most 100 different steps, so layers that see the time alone are computed
    for these. Where ``t`` has no more entries than there are steps, or is not of integers, it is left as it is.

    Returns:
        Steps; a function from (number of steps, ...) to t.shape + (...).
    """
    if t.size <= num_steps or not jnp.issubdtype(t.dtype, jnp.integer):
        return t, lambda table: table
    return jnp.arange(1, num_steps + 1), lambda table: table[t - 1]


def time_features(t: Array, num_steps: int, num_features: int) -> Array:
    """The position t / T with its sines and cosines at geometric frequencies: one smooth code for any T.

    Returns:
        Shape t.shape + (1 + 2 * num_features,).
    """
    # From one period over the whole chain down to one over about four steps of the longest chains in use (T = 1000).
    frequencies = jnp.asarray(np.pi * np.geomspace(1.0, 500.0, num_features), float)
    position = jnp.asarray(t, float)[..., None] / num_steps
    angle = position * frequencies
    return jnp.concatenate([2 * position - 1, jnp.sin(angle), jnp.cos(angle)], axis=-1)


def bump_features(t: Array, num_steps: int, num_bumps: int) -> Array:
    """The paper's normalised bumps in time: smooth weights of J readouts that sum to 1.

    Centres are even from 0 to T and as wide as they are apart.

    Returns:
        Shape t.shape + (num_bumps,).

    References: Sohl-Dickstein et al. 2015, Eq. 63.
    """
    if num_bumps == 1:
        return jnp.ones((*jnp.shape(t), 1))
    spacing = num_steps / (num_bumps - 1)
    distance = jnp.asarray(t, float)[..., None] / spacing - np.arange(num_bumps)
    return jax.nn.softmax(-0.5 * distance**2, axis=-1)


def fourier_features(x: Array, num_frequencies: int) -> Array:
    """The input x with sines and cosines of 2^k x, k = 0..num_frequencies - 1, to resolve fine structure.

    Returns:
        Shape (batch..., size * (1 + 2 * num_frequencies)).

    References: Tancik et al. 2020.
    """
    if not num_frequencies:
        return x
    angle = (x[..., None] * 2.0 ** np.arange(num_frequencies)).astype(x.dtype)
    waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return jnp.concatenate([x, waves.reshape((*x.shape[:-1], -1))], axis=-1)


def step_readout(hidden: Array, t: Array, num_steps: int, size: int, name: str = "readout") -> Array:
    """A linear layer whose weights are separate for every step, as in the paper's toy networks.

    Only the weights of the steps in ``t`` are read, so a scalar ``t`` costs one ordinary matrix product.

    Args:
        hidden: shape (batch..., units).
        t: integers 1..T that broadcast with the batch shape.
        num_steps: T.
        size: outputs.
        name: of the Haiku parameters.
    """
    shape = (num_steps, hidden.shape[-1], size)
    weights = hk.get_parameter(f"{name}_w", shape, hidden.dtype, hk.initializers.Constant(0.0))
    biases = hk.get_parameter(f"{name}_b", (num_steps, size), hidden.dtype, hk.initializers.Constant(0.0))
    return jnp.einsum("...h,...ho->...o", hidden, weights[t - 1]) + biases[t - 1]
