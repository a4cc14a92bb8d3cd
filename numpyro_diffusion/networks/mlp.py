"""Multilayer perceptrons: one that knows the time by an embedding, and the paper's with a readout for every step."""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp

from .._typing import Array
from .common import distinct_steps, flatten_event, fourier_features, split_outputs, step_readout, time_features

__all__ = ["MLP", "StepReadoutMLP"]


@dataclasses.dataclass(frozen=True)
class MLP:
    """Residual SiLU layers, each told the time; the usual choice for data of up to a few hundred numbers.

    The last layer starts at zero, so before training the network returns 0.

    Args:
        num_steps: T, ``kernel.num_steps``.
        num_outputs: ``kernel.num_outputs``.
        width: units of each layer.
        depth: hidden layers.
        num_frequencies: Fourier features of x at 1, 2, 4, ... radians a unit; 0 for none. In two or three
            dimensions they let the network follow fine structure; in many dimensions they are noise.
        num_time_features: sines and cosines of t each.
        event_dim: how many trailing dimensions of x are one event (flattened inside).
        context_dim: how many trailing dimensions of the context are one context.
        modulated: whether the context, with the time, shifts and scales every layer, rather than enter the first alone.
            It tells more of a context that decides much, as data do of what made them, for twice the cost of a layer.

    References: Perez et al. 2018 (``modulated``).
    """

    num_steps: int
    num_outputs: int = 2
    width: int = 128
    depth: int = 3
    num_frequencies: int = 0
    num_time_features: int = 16
    event_dim: int = 1
    context_dim: int = 1
    modulated: bool = False

    def __call__(self, x_t: Array, t: Array, context: Array | None = None) -> Array | tuple[Array, ...]:
        """The output for x_t of shape (batch..., event...)."""
        flat, event_shape = flatten_event(x_t, self.event_dim)
        features = fourier_features(flat, self.num_frequencies)
        if context is not None:
            features = jnp.concatenate([features, flatten_event(context, self.context_dim)[0]], axis=-1)
        steps, rows_of_t = distinct_steps(t, self.num_steps)
        time = time_features(steps, self.num_steps, self.num_time_features).astype(x_t.dtype)
        time = jax.nn.silu(hk.Linear(self.width, name="time")(time))
        hidden = hk.Linear(self.width, name="input")(features)
        told = None
        if self.modulated and context is not None:
            told = hk.Linear(self.width, name="told")(flatten_event(context, self.context_dim)[0])
            told = jax.nn.silu(told + rows_of_t(hk.Linear(self.width, name="told_time")(time)))
        for layer in range(self.depth):
            if told is None:
                inner = hidden + rows_of_t(hk.Linear(self.width, name=f"time_{layer}")(time))
            else:
                factor = hk.Linear(self.width, w_init=hk.initializers.Constant(0.0), name=f"factor_{layer}")(told)
                inner = hidden * (1 + factor) + hk.Linear(self.width, name=f"time_{layer}")(told)
            hidden = hidden + hk.Linear(self.width, name=f"hidden_{layer}")(jax.nn.silu(inner))
        size = self.num_outputs * flat.shape[-1]
        output = hk.Linear(size, w_init=hk.initializers.Constant(0.0), name="output")(jax.nn.silu(hidden))
        return split_outputs(output, self.num_outputs, event_shape)


@dataclasses.dataclass(frozen=True)
class StepReadoutMLP:
    """The paper's network for binary sequences: sigmoid layers shared over time, a separate readout for each step.

    Args:
        num_steps: T, ``kernel.num_steps``.
        num_outputs: ``kernel.num_outputs``.
        width: units of each layer; the paper has 50.
        depth: hidden layers; the paper has 3.
        event_dim: how many trailing dimensions of x are one event (flattened inside).

    >>> init = hk.transform(StepReadoutMLP(num_steps=2000)).init
    >>> params = jax.eval_shape(init, jax.random.key(0), jnp.ones(20), jnp.array(1))
    >>> params["hidden_2"]["w"].shape, params["~"]["readout_w"].shape
    ((50, 50), (2000, 50, 20))

    References: Sohl-Dickstein et al. 2015, Appendix D.1.2.
    """

    num_steps: int
    num_outputs: int = 1
    width: int = 50
    depth: int = 3
    event_dim: int = 1

    def __call__(self, x_t: Array, t: Array) -> Array | tuple[Array, ...]:
        """The output for x_t of shape (batch..., event...)."""
        hidden, event_shape = flatten_event(x_t, self.event_dim)
        size = self.num_outputs * hidden.shape[-1]
        for layer in range(self.depth):
            # A sigmoid's slope is 1/4: initial weights four times the usual keep the signal's size from layer to layer.
            scale = hk.initializers.VarianceScaling(16.0)
            hidden = jax.nn.sigmoid(hk.Linear(self.width, w_init=scale, name=f"hidden_{layer}")(hidden))
        return split_outputs(step_readout(hidden, t, self.num_steps, size), self.num_outputs, event_shape)
